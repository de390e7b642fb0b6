"""Text that others chose, made fit to be shown: nicknames, versions and the sentences of refusals must neither make up
lines of what is printed nor command the terminal that shows it. Imports nothing, for the quick path.
"""


def plain(text: str) -> str:
    """The same with U+FFFD for each control character, new lines included."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "\ufffd" for c in text)


def plain_lines(text: str) -> str:
    """The same of a text that may have several lines."""
    return "\n".join(map(plain, text.split("\n")))
