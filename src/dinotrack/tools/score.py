"""`dinotrack score FOLDER... [--output NAME]`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from dinotrack.scoreboard import compare


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="dinotrack score",
        description="score the predictions of dinotrack evaluate again, and lay methods side by side",
    )
    parser.add_argument(
        "folders", type=Path, nargs="+", help="folders of dinotrack evaluate; each gets scores.csv and .md"
    )
    parser.add_argument("--output", type=Path, help="write the table of all folders as OUTPUT.csv and OUTPUT.md too")
    options = parser.parse_args(arguments)

    if options.output and not options.output.name:
        parser.error(f"--output {options.output}: expected a name, as runs/all for runs/all.csv and runs/all.md")
    folders = [path for path in options.folders if not path.is_file()]  # runs/evaluate/* also names the plan of a sweep
    compare(folders or options.folders, options.output)
