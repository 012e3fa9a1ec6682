"""Pickle files from strangers: plain values and NumPy arrays are built, everything else is refused by name.

A pickle is a program that may call whatever it can name. Here names stand for the stand-ins below and nothing more: what NumPy's
own pickles call builds an array from bytes, by us, and no attribute of a real object can be set.
"""

import io
import math
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from dinotrack.errors import DinotrackError


class _Dtype:
    """`numpy.dtype` as a pickle calls it: a name such as "f4", then its byte order by `__setstate__`."""

    def __init__(self, name: Any, *_: Any) -> None:
        text = name.decode("latin1") if isinstance(name, bytes) else name
        found = np.dtype(text if isinstance(text, str) else "V")
        if found.kind not in "biufSO":
            raise DinotrackError(f"an array of type {name!r} is refused; expected numbers")
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
    """An array, read-only on the bytes of the pickle; of objects, the flat list of them."""
    if not isinstance(dtype, _Dtype):
        raise DinotrackError("an array without a type is refused")
    if dtype.dtype.kind == "O":
        if not isinstance(data, list) or len(shape) != 1:
            raise DinotrackError("an array of objects is refused, but for a list of byte strings")
        return data
    if not all(isinstance(side, int) and side >= 0 for side in shape):
        raise DinotrackError(f"an array of shape {shape!r} is refused")
    if math.prod(shape) * dtype.dtype.itemsize != len(data):
        raise DinotrackError(f"an array of {dtype.dtype} {shape} has {len(data)} bytes")
    return np.frombuffer(data, dtype.dtype).reshape(shape, order="F" if order == "F" else "C")


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _frombuffer(data: Any, dtype: Any, shape: Any, order: Any = "C", *_: Any) -> _Array:
    made = _Array()
    made.array = _built(data, dtype, shape, order)
    return made


def _scalar(dtype: Any, data: Any = b"") -> Any:
    return _built(data, dtype, ())[()].item()


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """`_codecs.encode`, by which old protocols write bytes."""
    if encoding != "latin1":
        raise DinotrackError(f"text in {encoding!r} is refused")
    return str(text).encode("latin1")


def _bytes(content: Any = b"") -> bytes:
    """`bytes` and `bytearray` of bytes; of a number they would ask for memory."""
    if not isinstance(content, bytes | bytearray):
        raise DinotrackError(f"bytes made of a {type(content).__name__} are refused")
    return bytes(content)


def _stand_ins() -> dict[tuple[str, str], Any]:
    """What a pickle may name, made anew for each file, so that none can leave anything behind for the next."""
    known: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): "ndarray",  # only ever handed to _reconstruct
        ("numpy", "dtype"): type("dtype", (_Dtype,), {}),
        ("_codecs", "encode"): lambda *a: _encode(*a),
    }
    for core in ("numpy.core", "numpy._core"):
        known[f"{core}.multiarray", "_reconstruct"] = lambda *a: _reconstruct(*a)
        known[f"{core}.multiarray", "scalar"] = lambda *a: _scalar(*a)
        known[f"{core}.numeric", "_frombuffer"] = lambda *a: _frombuffer(*a)
    for module in ("builtins", "__builtin__"):
        known[module, "bytearray"] = lambda *a: bytearray(_bytes(*a))
        known[module, "bytes"] = lambda *a: _bytes(*a)
    return known


class _PlainUnpickler(pickle.Unpickler):
    def __init__(self, file: io.BufferedIOBase) -> None:
        super().__init__(file, encoding="bytes")  # what Python 2 wrote as str may be binary
        self.known = _stand_ins()

    def find_class(self, module: str, name: str, /) -> Any:
        if (module, name) not in self.known:
            raise DinotrackError(f"it names {module}.{name}, which is no plain value")
        return self.known[module, name]

    def persistent_load(self, pid: Any, /) -> Any:
        raise DinotrackError("it refers to objects outside the file")


def read_pickle(path: str | os.PathLike[str]) -> Any:
    """Dicts, lists, tuples, numbers, text, bytes and NumPy arrays (read-only) of a pickle file; nothing in it is run.

    Raises:
        DinotrackError: for a file that cannot be read, is cut short, or holds anything else, by name.
    """
    try:
        with Path(path).open("rb") as file:
            return _plain(_PlainUnpickler(file).load(), {})
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
    """A key as text, where Python 2 wrote it as bytes."""
    try:
        return key.decode() if isinstance(key, bytes) else key
    except UnicodeDecodeError as error:
        raise DinotrackError(f"a key {key!r} is no text") from error
