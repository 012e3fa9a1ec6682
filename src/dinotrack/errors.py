"""The one exception that users are meant to read."""


class DinotrackError(ValueError):
    """Input, settings or files that dinotrack cannot work with; the message is one line: what, expected, remedy."""
