"""The command line: `adafuse demo`, `adafuse ask` and `adafuse chat`."""
