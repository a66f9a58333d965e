"""Text without models: where words end, and how text and token ids map to each other."""
