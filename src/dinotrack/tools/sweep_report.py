"""`dinotrack sweep-report FOLDER [--output NAME] [--no-plot]`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from dinotrack.training.sweep_report import write_report


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="dinotrack sweep-report", description="the jobs of a multirun as CSV, Markdown and a plot"
    )
    parser.add_argument("folder", type=Path, help="folder of a multirun, as runs/fit-sweep/2025-01-31_12-00-00")
    parser.add_argument("--output", type=Path, help="write OUTPUT.csv, .md and .png in place of FOLDER/report.*")
    parser.add_argument("--no-plot", action="store_true", help="CSV and Markdown alone, which need no matplotlib")
    options = parser.parse_args(arguments)
    for path in write_report(options.folder, options.output, plot=not options.no_plot):
        print(path)
