"""Files of prompts and of their answers, one JSON object a line, for `adafuse run`."""
