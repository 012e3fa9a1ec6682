"""What a signal does where nothing listens for it, and where a fit does."""

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from dinotrack.cli import plainly
from dinotrack.signals import DEFAULTS, Interrupted, StopSignals, raised

BOTH = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def _defaults() -> Iterator[None]:
    """Of a test run in the background, too, in which Ctrl-C is ignored."""
    before = [signal.signal(number, DEFAULTS[number]) for number in BOTH]
    yield
    for number, handler in zip(BOTH, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("number", BOTH)
def test_a_signal_ends_a_job_with_one_line_and_its_code(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    before, cleaned = [signal.getsignal(each) for each in BOTH], list[int]()

    def job() -> None:
        try:
            os.kill(os.getpid(), number)
            pytest.fail("went on")
        except Exception:
            pytest.fail("held up")
        finally:
            cleaned.append(1)

    assert plainly(job) == 128 + number and cleaned == [1]
    assert capsys.readouterr().err == f"dinotrack: stopped by {number.name}\n"
    assert [signal.getsignal(each) for each in BOTH] == before


def test_only_the_first_signal_is_raised() -> None:
    with raised():
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_another_ones_handler_is_left_alone() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    try:
        with raised():
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM]


def test_another_thread_runs_its_job_too() -> None:
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(plainly(lambda: None)))
    thread.start()
    thread.join()
    assert codes == [0]


def test_a_signal_that_a_fit_could_not_heed_is_passed_on() -> None:
    with raised():
        signals = StopSignals()
        signals.install()
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received == signal.SIGTERM
        with pytest.raises(Interrupted):
            signals.pass_on()
        signals.install()
        os.kill(os.getpid(), signal.SIGINT)
        signals.heeded = True
        signals.pass_on()
