"""Training clips of Kubric's panning MOVi-E as plain files, for `dinotrack train-chrono data=FOLDER`.

Needs what dinotrack does not: TensorFlow, tensorflow-datasets, tensorflow-graphics, and a checkout of
github.com/google-research/kubric whose folder `challenges` is on PYTHONPATH. TFDS fetches the data from Kubric's bucket.

    PYTHONPATH=kubric/challenges python scripts/export_kubric.py clips --count 1000
    dinotrack train-chrono data=clips

Each clip is CLIP.npz: video (24, 256, 256, 3) of bytes, query_points (256, 3) as t, y, x, target_points (256, 24, 2) as x, y and
occluded (256, 24); positions are raster. Crops and colours are drawn in training, so none are drawn here.
"""

import argparse
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np


def kubric_examples(split: str) -> Iterator[Mapping[str, Any]]:
    """Kubric's own point-tracking examples, whole frames, each once."""
    import tensorflow_datasets as tfds
    from point_tracking import dataset

    options = {"split": split, "random_crop": False, "repeat": False, "shuffle_buffer_size": None}
    return iter(tfds.as_numpy(dataset.create_point_tracking_dataset(**options)))


def as_clip(example: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of a file, from an example whose video is in [-1, 1]."""
    return {
        "video": np.clip(np.round((example["video"] + 1) * 127.5), 0, 255).astype(np.uint8),
        "query_points": example["query_points"].astype(np.float32),
        "target_points": example["target_points"].astype(np.float32),
        "occluded": example["occluded"].astype(bool),
    }


def write_clips(examples: Iterator[Mapping[str, Any]], folder: Path, count: int | None = None) -> int:
    """Write so many examples, or all; the number of files."""
    folder.mkdir(parents=True, exist_ok=True)
    written = 0
    for written, example in enumerate(islice(examples, count), 1):
        np.savez_compressed(folder / f"{written - 1:06}.npz", **as_clip(example))
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--split", default="train")
    parser.add_argument("--count", type=int, help="clips to write; all by default")
    given = parser.parse_args()
    print(f"{write_clips(kubric_examples(given.split), given.folder, given.count)} clips in {given.folder}")


if __name__ == "__main__":
    main()
