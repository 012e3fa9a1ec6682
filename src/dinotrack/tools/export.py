"""`dinotrack export tracker.ckpt folder [--iteration N]`."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from dinotrack.methods.published import export_checkpoint


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="dinotrack export", description="write a checkpoint as the two files of the published code"
    )
    parser.add_argument("checkpoint", type=Path, help="tracker.ckpt of a run folder")
    parser.add_argument(
        "folder", type=Path, help="where delta_dino_N.pt and tracker_head_N.pt go; best one of their own"
    )
    parser.add_argument(
        "--iteration", type=int, default=10000, help="the N of their names; the published code takes the highest"
    )
    options = parser.parse_args(arguments)

    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s", force=True)
    for path in export_checkpoint(options.checkpoint, options.folder, options.iteration):
        print(path)
