"""Members: language models with a text interface. Token ids do not leave this package."""
