"""Queries of every shape that is wrong, and those that are right."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.tried.cases import REFUSED, Case
from benchmarks.tried.files import array, clip, header, plain
from dinotrack.data.queries import read_queries


def of_queries() -> list[Case]:
    """Every shape that is wrong, and those that are right."""
    group = "queries"

    def asked(spec: Any) -> str:
        return f"{len(read_queries(spec, clip()))} queries"

    right: dict[str, Any] = {
        "a grid": "grid:16",
        "rows": [[0, 3, 4], [11, 64, 48]],
        "rows as text": "0,3,4; 5,6,7",
        "csv with names": plain("q.csv", "x,y,t\n3,4,0\n"),
        "csv without": plain("q.csv", "0,3,4\n"),
        "npy": array("q.npy", np.array([[0, 3, 4]])),
        "npy, whole numbers of 8 bit": array("q.npy", np.array([[0, 3, 4]], np.uint8)),
    }
    wrong: dict[str, tuple[Any, str]] = {
        "none": ([], "no queries"),
        "an empty text": ("", "no queries"),
        "not a number": ([[0, float("nan"), 4]], "query 0 .* is not finite"),
        "infinite": ([[0, 3, float("inf")]], "query 0 .* is not finite"),
        "10^400": ([[0, 3, 10**400]], "queries, row 0 is"),
        "a frame before the first": ([[-1, 3, 4]], r"is on no frame of the video; expected t in 0\.\.11"),
        "a frame after the last": ([[0, 3, 4], [12, 3, 4]], "query 1 .* is on no frame"),
        "between frames": ([[0.5, 3, 4]], "lies between frames"),
        "left of the video": ([[0, -0.1, 4]], "lies outside the video"),
        "below the video": ([[0, 3, 48.1]], "lies outside the video"),
        "two numbers": ([[0, 3]], "expected three numbers"),
        "four numbers": ([[0, 3, 4, 5]], "expected three numbers"),
        "one row": ([0, 3, 4], "queries, row 0 is 0"),
        "words": ([["a", "b", "c"]], "expected three numbers"),
        "a mapping": ({"t": 0}, "queries are a dict"),
        "a number": (5, "queries are a int"),
        "a text": ("hello", "expected three numbers"),
        "a text of a million letters": ("x," * 500_000, "expected three numbers"),
        "an array of shape (3,)": (np.zeros(3), r"expected \(N, 3\)"),
        "a tensor of shape (1, 2, 3)": (torch.zeros(1, 2, 3), r"expected \(N, 3\)"),
        "a grid of 0 pixels": ("grid:0", "expected grid:STEP"),
        "a grid of nothing": ("grid:x", "expected grid:STEP"),
        "a grid without points": ("grid:1000", "leaves no point"),
        "no such csv": (lambda folder: folder / "q.csv", r"no such queries: q\.csv"),
        "no such npy": (lambda folder: folder / "q.npy", r"no such queries: q\.npy"),
        "an empty csv": (plain("q.csv", ""), "no queries in"),
        "csv, other columns": (plain("q.csv", "a,b,c\n1,2,3\n"), "has columns a,b,c; expected t,x,y"),
        "csv, semicolons": (plain("q.csv", "0;3;4\n"), "expected"),
        "csv of bytes": (plain("q.csv", bytes(range(256))), r"cannot read the queries q\.csv"),
        "an empty npy": (plain("q.npy", b""), r"cannot read the queries q\.npy"),
        "npy of bytes": (plain("q.npy", bytes(range(256))), r"cannot read the queries q\.npy"),
        "npy of text": (array("q.npy", np.array([["a", "b", "c"]])), "expected numbers"),
        "npy of objects": (array("q.npy", np.array([{}])), r"cannot read the queries q\.npy"),
        "npy, complex": (array("q.npy", np.zeros((1, 3), complex)), "expected numbers"),
        "npy, 10^300": (array("q.npy", np.array([[0, 3, 1e300]])), "query 0 .* is not finite"),
        "npy, header of 10^12 rows": (plain("q.npy", header((10**12, 3), "<f4")), r"cannot read the queries q\.npy"),
        "npy, header that never ends": (
            plain("q.npy", b"\x93NUMPY\x01\x00\x20\x00{'descr': ((((((((((((((((((((\n"),
            "cannot read",
        ),
        "a folder": (lambda folder: folder / "..", "expected three numbers"),
    }

    def made(spec: Any) -> Callable[[Path], Any]:
        return spec if callable(spec) else lambda _: spec

    return [Case(group, name, made(spec), asked) for name, spec in right.items()] + [
        Case(group, name, made(spec), asked, REFUSED, words) for name, (spec, words) in wrong.items()
    ]
