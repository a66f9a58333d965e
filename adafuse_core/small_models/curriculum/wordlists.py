"""Reading the long lists of the curriculum from plain text."""


def words(text: str) -> list[str]:
    """Return the words of a text."""
    return text.split()


def entries(text: str) -> list[str]:
    """Return what stands between the semicolons of a text, with line breaks taken for spaces."""
    return [" ".join(entry.split()) for entry in text.split(";") if entry.strip()]
