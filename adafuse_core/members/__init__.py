"""Members: language models at the level of text. Token ids do not leave this package."""
