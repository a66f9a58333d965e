"""The command line: `adafuse demo`, `adafuse ask`, `adafuse chat` and `adafuse doctor`."""
