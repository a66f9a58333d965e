"""Where models run: token ids in, log-probabilities out."""
