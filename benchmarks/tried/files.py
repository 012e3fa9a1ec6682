"""Small files of every kind, for the cases beside this one."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.tried.films import FRAMES, HEIGHT, WIDTH, film
from dinotrack import Video

SHAPE = (FRAMES, HEIGHT, WIDTH)


def clip() -> Video:
    return Video(film(), 25.0, path="film.mp4")


def array(name: str, content: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        np.save(folder / name, content, allow_pickle=True)
        return folder / name

    return make


def plain(name: str, content: bytes | str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return folder / name

    return make


def header(shape: tuple[int, ...], kind: str) -> bytes:
    """Of an .npy file, with nothing after it."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": kind, "fortran_order": False, "shape": shape})
    return buffer.getvalue()
