"""The one exception that users are meant to read."""


class DinotrackError(ValueError):
    """Input, settings or files that dinotrack cannot work with; the message is one line: what, expected, remedy."""

    exit_code = 2


class Stopped(DinotrackError):
    """A signal ended the work in good order; the exit code is the shell's for that signal."""

    def __init__(self, where: str, again: str, number: int) -> None:
        super().__init__(f"{where}; {again}")
        self.where, self.number = where, number
        self.exit_code = 128 + number


def reason_of(error: BaseException, longest: int = 160) -> str:
    """Why something failed, for a message of our own: short, on one line, and never empty."""
    return " ".join(str(error).split())[:longest] or type(error).__name__


def printable(text: str) -> str:
    """One line without what a terminal would obey: names of files may hold it."""
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))
