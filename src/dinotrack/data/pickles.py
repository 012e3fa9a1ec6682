"""Pickle files from strangers: plain values and NumPy arrays are built, everything else is refused by name.

A pickle is a program that may call whatever it can name. Here names stand for the stand-ins below and nothing more: what NumPy's
own pickles call builds an array from bytes, by us, and no attribute of a real object can be set.
"""

import io
import math
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from dinotrack.errors import DinotrackError


class _Dtype:
    """`numpy.dtype` as a pickle calls it: a name such as "f4", then its byte order by `__setstate__`."""

    def __init__(self, name: Any, *_: Any) -> None:
        text = name.decode("latin1") if isinstance(name, bytes) else name
        found = np.dtype(text if isinstance(text, str) else "V")
        if found.kind not in "biufSO":
            raise DinotrackError(f"an array of type {quoted(name)} is refused; expected numbers")
        self.dtype = found

    def __setstate__(self, state: Any) -> None:
        if state[1] in ("<", ">", b"<", b">"):
            self.dtype = self.dtype.newbyteorder("<" if state[1] in ("<", b"<") else ">")


class _Array:
    """`numpy.ndarray` as a pickle makes it: empty, then shape, type and content by `__setstate__`."""

    array: Any = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        self.array = _built(data, dtype, shape, "F" if fortran else "C")


def _built(data: Any, dtype: Any, shape: Any, order: Any = "C") -> Any:
    """An array, read-only on the bytes of the pickle; of objects, an array of numbers or the flat list of them."""
    if not isinstance(dtype, _Dtype):
        raise DinotrackError("an array without a type is refused")
    if dtype.dtype.kind == "O":
        if isinstance(data, list) and shape == () and len(data) == 1 and isinstance(data[0], dict):
            return data[0]  # how `numpy.save` writes a dict
        if isinstance(data, list) and all(isinstance(each, bool | int | float) for each in data):
            return np.array(data).reshape(shape, order="F" if order == "F" else "C")
        if not isinstance(data, list) or len(shape) != 1:
            raise DinotrackError("an array of objects is refused, but for numbers or a list of byte strings")
        return data
    if not all(isinstance(side, int) and side >= 0 for side in shape):
        raise DinotrackError(f"an array of shape {quoted(shape)} is refused")
    if math.prod(shape) * dtype.dtype.itemsize != len(data):
        raise DinotrackError(f"an array of {dtype.dtype} {quoted(shape)} has {len(data)} bytes")
    array = np.frombuffer(data, dtype.dtype).reshape(shape, order="F" if order == "F" else "C")
    array.flags.writeable = False  # protocol 5 hands over a bytearray
    return array


def quoted(value: Any) -> str:
    """A stranger's value for a message: short, and without what a terminal would obey."""
    return repr(value)[:80]


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _frombuffer(data: Any, dtype: Any, shape: Any, order: Any = "C", *_: Any) -> _Array:
    made = _Array()
    made.array = _built(data, dtype, shape, order)
    return made


def _scalar(dtype: Any, data: Any = b"") -> Any:
    return _built(data, dtype, ())[()].item()


class _Bytes:
    """`bytes`, `bytearray` and `_codecs.encode`, by which old protocols write bytes: no more of them than the file is large."""

    def __init__(self, budget: int) -> None:
        self.budget = budget

    def encode(self, text: Any, encoding: Any = "latin1") -> bytes:
        if encoding not in ("latin1", b"latin1") or not isinstance(text, str):
            raise DinotrackError(f"text in {quoted(encoding)} is refused")
        return self.copy(text.encode("latin1"))

    def copy(self, content: Any = b"") -> bytes:
        if not isinstance(content, bytes | bytearray):
            raise DinotrackError(f"bytes made of a {type(content).__name__} are refused")
        self.budget -= len(content)
        if self.budget < 0:
            raise DinotrackError("it makes more bytes than it has")
        return bytes(content)


def _stand_ins(size: int) -> dict[tuple[str, str], Any]:
    """What a pickle of `size` bytes may name, made anew for each, so that none can leave anything behind for the next."""
    made = _Bytes(2 * size + 1024)
    known: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): _NDARRAY,
        ("numpy", "dtype"): type("dtype", (_Dtype,), {}),
        ("_codecs", "encode"): lambda *a: made.encode(*a),
    }
    for core in ("numpy.core", "numpy._core"):
        known[f"{core}.multiarray", "_reconstruct"] = lambda *a: _reconstruct(*a)
        known[f"{core}.multiarray", "scalar"] = lambda *a: _scalar(*a)
        known[f"{core}.numeric", "_frombuffer"] = lambda *a: _frombuffer(*a)
    for module in ("builtins", "__builtin__"):
        known[module, "bytearray"] = lambda *a: bytearray(made.copy(*a))
        known[module, "bytes"] = lambda *a: made.copy(*a)
    return known


_NDARRAY = object()
"""Stands for `numpy.ndarray`, which a pickle only ever hands to `_reconstruct`."""


class _Bounded:
    """A file that is never asked for more than it has: Python reserves what is asked for, and nine bytes may ask for gigabytes."""

    def __init__(self, file: io.BufferedIOBase, size: int) -> None:
        self.file, self.size, self.readline = file, size, file.readline

    def read(self, count: int) -> bytes:
        return self.file.read(min(count, self.size))


class _PlainUnpickler(pickle._Unpickler):
    """Python's own unpickler, not the one in C: nine bytes make that one reserve gigabytes for its memo."""

    append: Callable[[Any], None]
    read: Callable[[int], bytes]

    def __init__(self, file: io.BufferedIOBase, size: int) -> None:
        super().__init__(_Bounded(file, size), encoding="bytes")  # what Python 2 wrote as str may be binary
        self.known = _stand_ins(size)

    def load_bytearray8(self) -> None:
        """Read a bytearray; Python's own way makes it as long as the file says, then reads."""
        self.append(bytearray(self.read(int.from_bytes(self.read(8), "little"))))

    dispatch: ClassVar[dict[int, Any]] = {**pickle._Unpickler.dispatch, pickle.BYTEARRAY8[0]: load_bytearray8}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.known:
            raise DinotrackError(f"it names {quoted(module)[1:-1]}.{quoted(name)[1:-1]}, which is no plain value")
        return self.known[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise DinotrackError("it refers to objects outside the file")


def read_pickle(path: str | os.PathLike[str]) -> Any:
    """Dicts, lists, tuples, numbers, text, bytes and NumPy arrays (read-only) of a pickle file; nothing in it is run.

    Raises:
        DinotrackError: for a file that cannot be read, is cut short, or holds anything else, by name.
    """
    return _read(path, lambda file: None)


def read_npy_dict(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The dict that `numpy.save` wrote as an array of one object, read as `read_pickle` reads.

    Raises:
        DinotrackError: for a file that cannot be read, holds anything but plain values and arrays, or no dict.
    """
    found = _read(path, _skip_npy_head)
    if not isinstance(found, dict):
        raise DinotrackError(f"{path} holds a {type(found).__name__}; expected a dict")
    return found


def _skip_npy_head(file: io.BufferedIOBase) -> None:
    """Let pass the head of an .npy file of objects."""
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise DinotrackError(f"it is an .npy file of version {version}, not (1, 0)")
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype.kind != "O" or shape != ():
        raise DinotrackError(f"it is an array of {dtype} {quoted(shape)}, not of one object")


def _read(path: str | os.PathLike[str], skip: Callable[[io.BufferedIOBase], None]) -> Any:
    """The plain value of the pickle that begins where `skip` leaves the file."""
    try:
        with Path(path).open("rb") as file:
            skip(file)
            return _plain(_PlainUnpickler(file, Path(path).stat().st_size).load(), {})
    except DinotrackError as error:
        raise DinotrackError(f"{path} is refused: {error}; expected plain values and NumPy arrays") from error
    except FileNotFoundError as error:
        raise DinotrackError(f"no such file: {path}") from error
    except Exception as error:  # a damaged pickle can fail anywhere in the unpickler
        reason = f"{type(error).__name__}: {error}"
        raise DinotrackError(f"{path} is damaged or no pickle ({reason[:160]}); get it again") from error


def _plain(value: Any, done: dict[int, Any]) -> Any:
    """The value with arrays in place of what stood in for them; each part once, however often it is referred to."""
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | bytearray | np.ndarray):
        return value
    if id(value) in done:
        return done[id(value)]
    if type(value) is dict:
        made: Any = {}
        done[id(value)] = made
        made.update((_text(key), _plain(each, done)) for key, each in value.items())
        if len(made) < len(value):
            raise DinotrackError("it has one key twice")
    elif type(value) is list:
        made = []
        done[id(value)] = made
        made.extend(_plain(each, done) for each in value)
    elif type(value) is tuple:
        made = tuple(_plain(each, done) for each in value)
    elif isinstance(value, _Array):
        made = _plain(value.array, done)
    else:
        raise DinotrackError(f"it holds a {type(value).__name__}, which is no plain value")
    done[id(value)] = made
    return made


def _text(key: Any) -> Any:
    """A key that is a plain value; as text, where Python 2 wrote it as bytes."""
    if isinstance(key, tuple):
        return tuple(_text(each) for each in key)
    if not (key is None or isinstance(key, bool | int | float | str | bytes)):
        raise DinotrackError(f"it has a {type(key).__name__} as a key, which is no plain value")
    try:
        return key.decode() if isinstance(key, bytes) else key
    except UnicodeDecodeError as error:
        raise DinotrackError(f"a key {quoted(key)} is no text") from error
