"""Make the faults, keep what became of them, and fill the table of docs/reliability.md."""

import argparse
import importlib
import json
import logging
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from benchmarks.faults.trying import Impossible, Row, Try
from dinotrack.files import write_atomically
from dinotrack.training.stages import environment

ROWS = (
    "killed",
    "terminated",
    "disk_full",
    "damaged_cache",
    "damaged_run",
    "racing",
    "failing_logger",
    "evaluation",
    "training",
)
"""Modules beside this one; each has a ROW."""
DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE, RESULTS = DOCS / "reliability.md", DOCS / "results" / "faults.json"


def row_of(name: str) -> Row:
    return importlib.import_module(f"benchmarks.faults.{name}").ROW


def attempt(name: str, short: bool, seed: int, scratch: Path) -> dict[str, Any]:
    """Make the faults of a row in a folder of its own; what became of them."""
    row, start, done = row_of(name), time.perf_counter(), list[Try]()
    folder = scratch / name
    folder.mkdir()
    for each in row.tries(folder, random.Random(f"{name} {seed}"), row.short if short else row.long):
        done.append(each)
        print(f"{name} {len(done)}: {each.where}: {each.wrong or 'held'}", flush=True)
    wrong = [f"{each.where}: {each.wrong}" for each in done if each.wrong]
    where = dict(Counter(each.where for each in done).most_common())
    found = {"row": name, "fault": row.fault, "what": row.held, "tried": len(done), "held": len(done) - len(wrong)}
    return {**found, "wrong": wrong, "where": where, "seconds": round(time.perf_counter() - start, 1)}


def keep(path: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Write rows beside those of other faults that are there."""
    known = json.loads(path.read_text()) if path.exists() else []
    every = {row["row"]: row for row in [*known, *rows]}
    ordered = [every[name] for name in ROWS if name in every]
    write_atomically(path, lambda name: name.write_text(json.dumps(ordered, indent=1) + "\n"))
    return ordered


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown; a miss is called a miss."""
    lines = ["| fault | what is held against it | held | of |", "|---|---|---|---|"]
    for row in rows:
        held = f"{row['held']}{'' if row['held'] == row['tried'] else ': MISSED'}"
        lines.append(f"| {row['fault']} (`{row['row']}`) | {row['what']} | {held} | {row['tried']} |")
    about = {name: " / ".join(dict.fromkeys(str(row[name]) for row in rows)) for name in ("commit", "hardware", "seed")}
    return "\n".join([*lines, "", f"(commit {about['commit']}; {about['hardware']}; seed {about['seed']})"]) + "\n"


def fill(page: Path, text: str) -> None:
    """Put the table between its marks."""
    before, rest = page.read_text().split("<!-- faults -->\n")
    after = rest.split("<!-- /faults -->")[1]
    page.write_text(f"{before}<!-- faults -->\n{text}<!-- /faults -->{after}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="row", help=f"among {', '.join(ROWS)}; default: all")
    parser.add_argument("--short", action="store_true", help="a few faults of each kind; kept only with --output")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help=f"file of the rows; default: {RESULTS.name}, whose table is shown")
    options = parser.parse_args(arguments)
    unknown = set(options.rows) - set(ROWS)
    if unknown:
        parser.error(f"no row {sorted(unknown)[0]!r}; there are {', '.join(ROWS)}")
    torch.set_num_threads(1)
    logging.getLogger("dinotrack").propagate = False  # what is said is looked at, not shown
    about = {name: value for name, value in environment().items() if name in ("commit", "hardware", "torch")}
    done = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.rows or ROWS:
            try:
                row = attempt(name, options.short, options.seed, Path(scratch))
                done.append({**row, **about, "seed": options.seed})
            except Impossible as error:
                print(f"{name}: cannot be tried here: {error}")
                continue
            if options.output or not options.short:
                kept = keep(options.output or RESULTS, done[-1:])
                if not options.output:
                    fill(PAGE, table(kept))
    print(table(done))
    sys.exit(any(row["wrong"] for row in done))


if __name__ == "__main__":
    main()
