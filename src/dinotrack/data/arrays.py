"""Arrays and text from files of strangers: no objects, nothing read that is larger than a bound, one error for all damage."""

import json
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dinotrack.errors import DinotrackError, reason_of

MOST_BYTES = 4 * 10**9
"""Of what a compressed file grows to: a few kilobytes can ask for any number."""
MOST_TEXT = 10**9
"""Bytes of a text file, which take many times that in memory."""


def read_npy(path: str | os.PathLike[str], what: str, expected: str) -> np.ndarray:
    """The array of an .npy file, mapped: nothing is in memory before the caller has looked at its shape.

    Raises:
        DinotrackError: for a file that is not there, damaged, shorter than it claims, or holds anything but plain values.
    """
    try:
        array = np.load(path, mmap_mode="c", allow_pickle=False)
    except FileNotFoundError as error:
        raise DinotrackError(f"no such {what}: {path}; {expected}") from error
    except Exception as error:  # a damaged header can fail anywhere in NumPy's parser, by MemoryError too
        raise DinotrackError(f"cannot read the {what} {path} ({reason_of(error)}); {expected}") from error
    if not isinstance(array, np.ndarray):
        raise DinotrackError(f"cannot read the {what} {path} (it is an archive); {expected}")
    return array


def read_npz(path: str | os.PathLike[str], keys: Sequence[str], what: str, expected: str) -> dict[str, np.ndarray]:
    """The arrays `keys` of an .npz file, whose other contents stay unread.

    Raises:
        DinotrackError: for a file that is not there, damaged, without one of them, or that grows beyond `MOST_BYTES`.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(info.file_size for info in archive.infolist())
        if size > MOST_BYTES:
            raise DinotrackError(f"{path} grows to {size / 1e9:.1f} GB; expected at most {MOST_BYTES / 1e9:.0f} GB")
        with np.load(path, allow_pickle=False) as file:
            return {key: np.asarray(file[key]) for key in keys}
    except DinotrackError:
        raise
    except FileNotFoundError as error:
        raise DinotrackError(f"no such {what}: {path}; expected an .npz file") from error
    except KeyError as error:
        raise DinotrackError(f"{path} holds no {what} ({reason_of(error)}); expected {', '.join(keys)}") from error
    except Exception as error:  # a damaged archive can fail anywhere in zipfile, zlib and NumPy
        raise DinotrackError(f"{path} is no .npz file of {what} ({reason_of(error)}); {expected}") from error


def read_text(path: str | os.PathLike[str], what: str, expected: str) -> str:
    """A file of UTF-8 text, with or without a byte order mark.

    Raises:
        DinotrackError: for a file that is not there, no text, or larger than `MOST_TEXT`.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(MOST_TEXT + 1)
        if len(content) > MOST_TEXT:
            raise DinotrackError(f"{path} is larger than {MOST_TEXT / 1e9:.0f} GB; {expected}")
        return content.decode("utf-8-sig")
    except FileNotFoundError as error:
        raise DinotrackError(f"no such {what}: {path}; {expected}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DinotrackError(f"cannot read the {what} {path} ({reason_of(error)}); {expected}") from error


def read_json(path: str | os.PathLike[str], what: str, expected: str) -> Any:
    """What a JSON file says.

    Raises:
        DinotrackError: for a file that is not there or no JSON.
    """
    text = read_text(path, what, expected)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DinotrackError(f"cannot read the {what} {path} ({reason_of(error)}); {expected}") from error


def regular_file(path: Path) -> bool:
    """Whether it is a file, and no device, pipe or folder; of a path that the system refuses, no."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
