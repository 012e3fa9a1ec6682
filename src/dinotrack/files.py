"""Files that are whole or not there: written under a temporary name, then renamed."""

import hashlib
import os
import platform
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from dinotrack.errors import DinotrackError

MACHINE = hashlib.sha256(platform.node().encode()).hexdigest()[:6]
"""Part of temporary names: on a shared disk, a number says nothing of a process of another machine."""


@contextmanager
def saying_where(path: Path) -> Iterator[None]:
    """Turn what goes wrong while `path` is written into one line that names it."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        raise DinotrackError(
            f"cannot write {path}: {system_reason(error)}; free space or choose another folder"
        ) from error


def system_reason(error: Exception) -> str:
    """What the system said of a file; safetensors hands its number on in a text."""
    number = re.search(r"\(os error (\d+)\)", str(error))
    return os.strerror(int(number[1])) if number else getattr(error, "strerror", None) or str(error)


def temporary_beside(path: Path) -> Path:
    """The name under which a file is written before it is whole; no other process or call has it."""
    return path.with_name(f".{path.stem}-{MACHINE}-{os.getpid()}-{secrets.token_hex(4)}{path.suffix}")


def leftovers(path: Path) -> list[Path]:
    """Temporary files of `path`: of processes that are writing it, and of those that were killed meanwhile."""
    tail = "-".join(["?" * len(MACHINE), "*", "?" * 8])
    return [*path.parent.glob(f".{path.stem}-{tail}{path.suffix}")]


def remove_leftovers(path: Path, *, alone: bool = False) -> None:
    """Remove what killed processes of this machine left of `path`; where no other can be writing it (`alone`), all there is."""
    for left in leftovers(path):
        machine, number, _ = left.stem.rsplit("-", 3)[1:]
        if alone or (machine == MACHINE and not is_running(number)):
            with suppress(OSError):
                left.unlink()


def is_running(number: str) -> bool:
    """Whether a process of this machine has that number; where the system cannot be asked, it may."""
    if os.name != "posix" or not number.isdecimal():
        return True
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        return True
    return True


def flush_to_disk(path: Path) -> None:
    """Wait until a file is on the disk: a full or broken one may say so only then."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it; a failure leaves neither file behind.

    Raises:
        DinotrackError: when it cannot be written; what was at `path` before is still there.
    """
    temporary = temporary_beside(path)
    try:
        with saying_where(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_leftovers(path)
            temporary.touch()
            mode = temporary.stat().st_mode
            write(temporary)
            temporary.chmod(
                mode
            )  # a writer that makes a file of its own, as safetensors' does, makes it for one user alone
            flush_to_disk(temporary)
            os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
