"""Fuzz the readers of pickles and videos with atheris, which follows the code that each input reaches: what may come out is our
own error, and nothing else.

python -m benchmarks.fuzz pickle --seconds 60  # also: video, npz, queries, json, clips; `pip install atheris` brings what it needs

An input that breaks a reader is left as crash-... in the current folder. tests/test_readers_fuzzed.py is the short form,
by hypothesis.
"""

import argparse
import io
import pickle
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def seeds() -> dict[str, tuple[str, list[bytes], Callable[[Path], Any]]]:
    """Of each reader: the ending of its files, some that are right, and itself."""
    import torch

    from benchmarks.tried.films import film, write
    from dinotrack import Video, load_video
    from dinotrack.data.export import load_npz
    from dinotrack.data.keypoints import load_json
    from dinotrack.data.pickles import read_pickle
    from dinotrack.data.point_clips import ExportedClips
    from dinotrack.data.queries import read_queries

    torch.set_num_threads(1)
    clip = Video(film(4, 24, 16), 25.0)
    plain = {"a": np.arange(3.0), "b": [1, "x", b"y", None], "c": {1: (2.5, True)}}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        videos = [write(place / name, codec, pixels, clip.frames) for name, codec, pixels in FORMATS]
        films = [path.read_bytes() for path in videos]
    array = io.BytesIO()
    np.save(array, np.zeros((1, 3)))
    training = io.BytesIO()
    points = {"query_points": np.zeros((1, 3)), "target_points": np.zeros((1, 2, 2)), "occluded": np.zeros((1, 2))}
    np.savez(training, video=np.zeros((2, 4, 4, 3), np.uint8), **points)
    return {
        "pickle": (".pkl", [pickle.dumps(plain, protocol) for protocol in range(6)], read_pickle),
        "video": (".bin", films, load_video),
        "npz": (".npz", [b"PK\x03\x04"], load_npz),
        "queries": (".npy", [array.getvalue()], lambda path: read_queries(path, clip)),
        "json": (".json", [b'{"format":"dinotrack-keypoints","version":1}'], load_json),
        "clips": (".npz", [training.getvalue()], lambda path: ExportedClips([path])[0]),
    }


FORMATS = (
    ("a.mp4", "mpeg4", "yuv420p"),
    ("a.mkv", "ffv1", "bgr0"),
    ("a.gif", "gif", "rgb8"),
    ("a.avi", "mjpeg", "yuvj420p"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("reader", choices=("pickle", "video", "npz", "queries", "json", "clips"))
    parser.add_argument("--seconds", type=int, default=60)
    options = parser.parse_args()
    import atheris

    with atheris.instrument_imports(include=["dinotrack.data", "pickle"]):
        from dinotrack import DinotrackError

        ending, corpus, read = seeds()[options.reader]
    with tempfile.TemporaryDirectory() as folder:
        path, known = Path(folder) / f"file{ending}", Path(folder) / "corpus"
        known.mkdir()
        for number, data in enumerate(corpus):
            (known / str(number)).write_bytes(data)

        def one(data: bytes) -> None:
            path.write_bytes(data)
            try:
                read(path)
            except DinotrackError as error:
                if "\n" in str(error):
                    raise AssertionError("an error of several lines") from error

        limits = [f"-max_total_time={options.seconds}", "-rss_limit_mb=4096", "-max_len=20000"]
        atheris.Setup([sys.argv[0], *limits, str(known)], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
