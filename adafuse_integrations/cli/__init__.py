"""The command line: `adafuse demo`, `adafuse ask`, `adafuse chat`."""
