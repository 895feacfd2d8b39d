"""A module beside an app."""


def shout(text):
    """Return a text in capitals."""
    return text.strip().upper()
