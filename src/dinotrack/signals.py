"""What Ctrl-C, and the SIGTERM that a cluster sends before it takes a machine away, do to the work at hand."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

DEFAULTS = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}


class Interrupted(BaseException):
    """A signal came: no kind of `Exception`, so that nothing that survives errors holds it up."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextmanager
def raised() -> Iterator[None]:
    """Raise the first SIGINT or SIGTERM that comes inside as `Interrupted`, so that temporary files go and locks open.

    A second one does what it did before. Only the main thread can, and a handler that someone has set is left alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours = [number for number, default in DEFAULTS.items() if signal.getsignal(number) == default]

    def remove() -> None:
        for number in ours:
            if signal.getsignal(number) is handler:
                signal.signal(number, DEFAULTS[number])

    def handler(number: int, _: Any) -> None:
        remove()
        raise Interrupted(number)

    for number in ours:
        signal.signal(number, handler)
    try:
        yield
    finally:
        remove()


class StopSignals:
    """Notes SIGINT (Ctrl-C) and SIGTERM in place of dying of them; a second one is not held back."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.heeded = False
        """Whether the work was ended because of it."""
        self.before = dict[int, Any]()

    def install(self) -> None:
        """Begin to listen; only the main thread can."""
        if threading.current_thread() is threading.main_thread() and not self.before:
            self.received, self.heeded = None, False
            self.before = {number: signal.signal(number, self.note) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(self, number: int, _: Any) -> None:
        """The handler."""
        again, self.received = self.received is not None, signal.Signals(number)
        if again:
            self.remove()
            os.kill(os.getpid(), number)

    def remove(self) -> None:
        """Give the signals back to whoever had them, unless someone else has done so: Lightning, at the end of a fit."""
        for number, handler in self.before.items():
            if signal.getsignal(number) == self.note:
                signal.signal(number, handler)
        self.before = {}

    def pass_on(self) -> None:
        """Give the signals back, and with them one that came too late to be heeded."""
        late = self.received if self.before and not self.heeded else None
        self.remove()
        if late is not None:
            os.kill(os.getpid(), late)
