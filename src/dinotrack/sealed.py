"""Files that tell when they are damaged: a checksum of all that is in them, compared when they are read.

SHA-256, since hashlib has it: where the processor has instructions for it, it takes about as long as reading the disk. It is no
protection from someone who changes a file on purpose.
"""

import hashlib
import io
import json
import os
import re
import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO

import torch

from dinotrack.errors import DinotrackError
from dinotrack.files import write_atomically

UNSEALED = "0" * 64
"""The value of "checksum" in the header of a safetensors file while the checksum is computed."""
SEAL = re.compile(rb'"checksum":"([0-9a-f]{64})"')
LARGEST_HEAD = 100_000_000
"""Bytes; safetensors refuses longer ones too."""
CHUNK = 2**24
_CHECKED = set[tuple[str, int, int, int]]()
"""Files whose checksum this process knows to be right: path, number, size and time of the last change."""


def read_head(file: BinaryIO) -> bytes:
    """What stands before the data of a safetensors file: the length of its header in 8 bytes, and the header.

    Raises:
        ValueError: where there is none.
    """
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > LARGEST_HEAD:
        raise ValueError("it has no header")
    return start + file.read(length)


def seal(file: BinaryIO, head: bytes, digest: str) -> None:
    """Put the checksum into a file that was written with `UNSEALED`.

    `digest` is the SHA-256 of `head` as it was written and of the data after it, in their order: whoever writes a file in pieces
    feeds them as they come.
    """
    file.seek(head.index(UNSEALED.encode()))
    file.write(digest.encode())


def seal_file(path: Path) -> None:
    """Put the checksum into a whole file that was written with `UNSEALED`."""
    with path.open("rb+") as file:
        head = read_head(file)
        seal(file, head, digest_of(file, head))


def digest_of(file: BinaryIO, head: bytes = b"") -> str:
    """SHA-256 of `head` and of the rest of a file, which is read and not mapped: its pages stay out of this process."""
    digest = hashlib.sha256(head)
    while chunk := file.read(CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a whole file."""
    with path.open("rb") as file:
        return digest_of(file)


def check_seal(path: str | os.PathLike[str]) -> None:
    """Let pass a safetensors file whose checksum is right; read once by a process, as long as the file is the same.

    Raises:
        OSError, ValueError: for a file that is not there, not whole, or without a checksum.
    """
    state = state_of(path)
    if state in _CHECKED:
        return
    with open(path, "rb") as file:
        head = read_head(file)
        found = SEAL.search(head)
        if not found:
            raise ValueError("it has no checksum")
        first, last = found.span(1)
        if digest_of(file, head[:first] + UNSEALED.encode() + head[last:]) != found[1].decode():
            raise ValueError("its checksum does not match its content")
    _CHECKED.add(state)


def state_of(path: str | os.PathLike[str]) -> tuple[str, int, int, int]:
    """What changes when a file does."""
    about = os.stat(path)
    return os.path.abspath(path), about.st_ino, about.st_size, about.st_mtime_ns


def take_as_checked(path: str | os.PathLike[str]) -> None:
    """Let pass, in this process, a file that it has sealed itself: it may be large, and was hashed as it was written."""
    _CHECKED.add(state_of(path))


def forget_checks() -> None:
    """Let this process read every file again, as a new one would."""
    _CHECKED.clear()


def load_archive(path: str | os.PathLike[str]) -> Any:
    """Tensors and plain values of a file by torch.save, on the CPU; nothing in it is run, and none of it is compressed.

    Such a file is a ZIP archive with a CRC-32 of each record, which torch.load does not look at.

    Raises:
        DinotrackError: for a compressed archive; for objects.
        Exception: of many kinds, for a damaged file.
    """
    if zipfile.is_zipfile(path):
        check_archive(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:  # torch's own words advise to read it without a guard
        raise DinotrackError(
            "it is damaged, or holds more than tensors and plain values, which may run code"
        ) from error


def save_archive(content: Any, path: str | os.PathLike[str]) -> None:
    """What `load_archive` reads, made in memory: Python's file says why it cannot be written, torch's does not.

    Raises:
        OSError: when it cannot.
    """
    made = io.BytesIO()
    torch.save(content, made)
    Path(path).write_bytes(made.getbuffer())


def check_archive(path: str | os.PathLike[str]) -> None:
    """Let pass a ZIP archive whose records are stored as they are and have the CRC-32 that it says.

    Raises:
        DinotrackError: for a compressed one, which torch never writes: a few kilobytes could grow to anything.
        ValueError, OSError, zipfile.BadZipFile, ...: for one that is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise DinotrackError("it is compressed, as torch.save never writes")
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"{damaged} in it is damaged")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a mapping as JSON, with its checksum as one more entry.

    Raises:
        DinotrackError: when it cannot be written.
    """
    sealed = {**content, "checksum": json_digest(content)}
    write_atomically(path, lambda name: name.write_text(json.dumps(sealed, indent=2) + "\n"))


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """What `write_json` wrote.

    Raises:
        DinotrackError: for a file that is missing, damaged or without a checksum, with the `remedy`.
    """
    try:
        content = json.loads(path.read_text())
        stated = content.pop("checksum")
        if stated != json_digest(content):
            raise ValueError("its checksum does not match its content")
    except KeyError as error:
        raise DinotrackError(f"{path} has no checksum: damaged, or of an earlier version; {remedy}") from error
    except OSError as error:
        raise DinotrackError(f"cannot read {path}: {error.strerror}; {remedy}") from error
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise DinotrackError(f"{path} is damaged ({error}); {remedy}") from error
    return content


def json_digest(content: dict[str, Any]) -> str:
    plain = json.loads(json.dumps(content))  # as it is read again: tuples are lists
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
