"""Masks: hard, soft, labels; as pictures and arrays; right and wrong."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.tried.cases import REFUSED, SAYS, Case
from benchmarks.tried.files import SHAPE, array, clip, header, plain
from benchmarks.tried.films import HEIGHT, WIDTH
from dinotrack.data.masks import load_masks


def left(values: tuple[Any, Any], kind: Any) -> np.ndarray:
    """Masks whose left half has the first of two values."""
    masks = np.empty(SHAPE, kind)
    masks[:, :, : WIDTH // 2], masks[:, :, WIDTH // 2 :] = values
    return masks


def foreground(expected: tuple[bool, bool] = (False, True)) -> Callable[[Path], str]:
    """Reads masks, whose halves must be so."""

    def act(path: Path) -> str:
        masks = load_masks(path, clip())
        found = bool(masks[:, :, 2].all()), bool(masks[:, :, -2].all())
        assert masks.shape == SHAPE and found == expected, f"halves are {found}"
        return f"{masks.float().mean().item():.0%} foreground"

    return act


def of_masks() -> list[Case]:
    """Hard, soft, labels; as pictures and arrays."""
    group = "masks"

    def folder_of(masks: np.ndarray, ending: str = ".png", mode: str = "") -> Callable[[Path], Path]:
        def make(folder: Path) -> Path:
            (folder / "m").mkdir()
            for number, mask in enumerate(masks):
                picture = Image.fromarray(mask)
                if mode == "P":
                    picture.putpalette([0, 0, 0, 128, 0, 0] + [9] * 762)
                picture.save(folder / "m" / f"{number}{ending}", quality=90)
            return folder / "m"

        return make

    eight = np.uint8
    coloured = np.stack([left((0, 0), eight), left((0, 255), eight), left((0, 0), eight)], -1)
    wrong = {
        "npy, one too few": (array("m.npy", left((0, 1), bool)[1:]), "holds 11 masks"),
        "npy, of another size": (array("m.npy", left((0, 1), bool)[:, 1:]), "is 64x47, the video 64x48"),
        "npy, one mask for all": (
            array("m.npy", left((0, 1), bool)[0]),
            r"have shape \(48, 64\); expected \(T, H, W\)",
        ),
        "npy, floats above 1": (array("m.npy", left((0, 255), np.float32)), r"floats outside \[0, 1\]"),
        "npy, not a number": (array("m.npy", left((0, np.nan), np.float32)), r"floats outside \[0, 1\]"),
        "npy, complex": (array("m.npy", left((0, 1), np.complex64)), "are of type complex64"),
        "npy, text": (array("m.npy", left(("a", "b"), "U1")), "are of type <U1"),
        "npy, objects": (array("m.npy", np.array([{}])), r"cannot read the masks m\.npy"),
        "npy, cut off": (lambda folder: _cut(array("m.npy", left((0, 1), eight))(folder)), "cannot read the masks"),
        "npy, header of 10^12 masks": (plain("m.npy", header((10**12, HEIGHT, WIDTH), "|u1")), "cannot read the masks"),
        "npy that is an archive": (_archive, "it is an archive"),
        "npy that is text": (plain("m.npy", "hello"), "cannot read the masks"),
        "png, one too few": (folder_of(left((0, 255), eight)[1:]), "holds 11 masks"),
        "png, of another size": (folder_of(left((0, 255), eight)[:, 1:]), r"m/0\.png is 64x47, the video 64x48"),
        "a single png": (lambda folder: folder_of(left((0, 255), eight))(folder) / "0.png", "no such masks"),
        "an empty folder": (lambda folder: folder, "holds no frames"),
        "none": (lambda folder: folder / "gone", "no such masks: gone"),
    }
    right: dict[str, tuple[Callable[[Path], Path], tuple[bool, bool]]] = {
        "png, hard": (folder_of(left((0, 255), eight)), (False, True)),
        "png, soft": (folder_of(left((100, 140), eight)), (False, True)),
        "png, labels": (folder_of(left((0, 3), eight)), (False, True)),
        "png, palette": (folder_of(left((0, 1), eight), mode="P"), (False, True)),
        "png, 16 bit": (folder_of(left((100, 60000), np.uint16)), (False, True)),
        "png, bool": (folder_of(left((False, True), bool)), (False, True)),
        "png, coloured": (folder_of(coloured), (False, True)),
        "jpg, hard": (folder_of(left((0, 255), eight), ".jpg"), (False, True)),
        "jpg, soft": (folder_of(left((90, 170), eight), ".jpg"), (False, True)),
        "npy, bool": (array("m.npy", left((False, True), bool)), (False, True)),
        "npy, uint8": (array("m.npy", left((127, 255), eight)), (False, True)),
        "npy, labels": (array("m.npy", left((0, 7), np.int64)), (False, True)),
        "npy, floats": (array("m.npy", left((0.4, 0.6), np.float32)), (False, True)),
    }
    cases = [Case(group, name, make, foreground(halves)) for name, (make, halves) in right.items()]
    faint = folder_of(left((0, 60), eight), ".jpg")
    cases.append(
        Case(group, "jpg, soft and faint", faint, foreground((False, False)), SAYS, "no mask has any foreground")
    )
    black = array("m.npy", left((0, 0), eight))
    cases.append(
        Case(group, "npy, all background", black, foreground((False, False)), SAYS, "no mask has any foreground")
    )
    return cases + [Case(group, name, make, foreground(), REFUSED, words) for name, (make, words) in wrong.items()]


def _cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:999])
    return path


def _archive(folder: Path) -> Path:
    np.savez(folder / "m.npz", left((0, 1), bool))
    return (folder / "m.npz").rename(folder / "m.npy")
