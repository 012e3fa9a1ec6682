"""`dinotrack make-benchmark FOLDER [--format davis] [--subset four] [--jpeg]`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from dinotrack.data.synthetic_benchmark import FORMATS, write_benchmark
from dinotrack.progress import shown


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="dinotrack make-benchmark", description="write our synthetic benchmark as TAP-Vid's files"
    )
    parser.add_argument("folder", type=Path, help="where the files go")
    parser.add_argument(
        "--format",
        choices=("davis", "list", "shards", "all"),
        default="all",
        help="a dict as TAP-Vid-DAVIS, a list as RGB-Stacking, shards as Kinetics; default: all three",
    )
    parser.add_argument("--subset", choices=("all", "four"), default="all", help="twelve clips, or one of each kind")
    parser.add_argument(
        "--jpeg", action="store_true", help="frames of the shards as JPEG bytes; the pixels change a little"
    )
    options = parser.parse_args(arguments)

    formats = FORMATS if options.format == "all" else (options.format,)
    for path in write_benchmark(options.folder, formats, options.subset, jpeg=options.jpeg, progress=shown):
        print(path)
