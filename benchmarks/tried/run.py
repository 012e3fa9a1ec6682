"""Try every input and write down what happened: docs/results/inputs.json and the tables of docs/inputs.md.

python -m benchmarks.tried.run           # all, some minutes; ends with 1 where anything happened that was not expected
python -m benchmarks.tried.run damaged   # only groups of these names; writes nothing
"""

import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import av
import torch

from benchmarks.tried.cases import Case, Outcome, tried
from benchmarks.tried.damage import of_cuts, of_damage
from benchmarks.tried.masks import of_masks
from benchmarks.tried.names import of_names
from benchmarks.tried.no_video import of_folders, of_nothing
from benchmarks.tried.queries import of_queries
from benchmarks.tried.runs import of_runs
from benchmarks.tried.strangers import of_strangers
from benchmarks.tried.videos import of_formats, of_shapes
from dinotrack.training.stages import environment

ROOT = Path(__file__).resolve().parents[2]
KEPT, PAGE = ROOT / "docs" / "results" / "inputs.json", ROOT / "docs" / "inputs.md"
LONGEST = 220
"""Characters of a line in the page's tables; the JSON has all."""


def quick_cases() -> list[Case]:
    """All but whole runs."""
    groups = (
        of_formats,
        of_shapes,
        of_damage,
        of_cuts,
        of_nothing,
        of_folders,
        of_names,
        of_masks,
        of_queries,
        of_strangers,
    )
    return [case for cases in groups for case in cases()]


def try_all(cases: Iterable[Case]) -> list[Outcome]:
    """Each in a folder of its own, and a line about each that was not as expected."""
    outcomes = []
    for case in cases:
        with tempfile.TemporaryDirectory() as folder:
            outcome = tried(case, Path(folder))
        outcomes.append(outcome)
        if not outcome.as_expected:
            print(f"NOT EXPECTED {case.id}: {outcome.status} {outcome.said} {' / '.join(outcome.lines)}", flush=True)
    return outcomes


def kept(outcomes: list[Outcome]) -> dict[str, object]:
    """What the JSON file holds."""
    rows = [
        {
            "group": each.case.group,
            "input": each.case.name,
            "happened": each.status,
            "result": each.said,
            "lines": each.lines,
        }
        | {"as_expected": each.as_expected}
        for each in outcomes
    ]
    versions = {"av": av.__version__, "ffmpeg": ".".join(map(str, av.library_versions["libavcodec"]))}
    return {"command": "python -m benchmarks.tried.run", **environment(), **versions, "rows": rows}


def tables(content: dict[str, object]) -> dict[str, str]:
    """A table for each group, and one of how many there are."""
    rows: list[dict[str, object]] = content["rows"]  # type: ignore[assignment]
    groups = dict.fromkeys(str(row["group"]) for row in rows)
    found = {group: _table([row for row in rows if row["group"] == group]) for group in groups}
    counts = Counter((str(row["group"]), str(row["happened"])) for row in rows)
    kinds = list(dict.fromkeys(str(row["happened"]) for row in rows))
    lines = [f"| | {' | '.join(kinds)} |", "|---" * (1 + len(kinds)) + "|"]
    lines += [f"| {group} | {' | '.join(str(counts[group, kind] or '') for kind in kinds)} |" for group in groups]
    unlike = sum(not row["as_expected"] for row in rows)
    about = (
        f"({len(rows)} inputs, {unlike} of which did something else than the case expects; commit {content['commit']}"
    )
    return {
        "counts": "\n".join([*lines, "", f"{about}; PyAV {content['av']}, libavcodec {content['ffmpeg']})"]),
        **found,
    }


def _table(rows: list[dict[str, object]]) -> str:
    lines = ["| input | what happened | what it says |", "|---|---|---|"]
    for row in rows:
        said = " / ".join(row["lines"]) or str(row["result"])  # type: ignore[arg-type]
        short = said[:LONGEST] + ("..." if len(said) > LONGEST else "")
        lines.append(f"| {_cell(str(row['input']))} | {row['happened']} | {_cell(short)} |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Text that Markdown shows as it is."""
    for old, new in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("*", "\\*"), ("_", "\\_"), ("[", "\\["), ("`", "'")):
        text = text.replace(old, new)
    return text


def update_page(content: dict[str, object]) -> None:
    """Put the tables between their markers."""
    text = PAGE.read_text()
    for name, table in tables(content).items():
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, rest = text.split(start)
        text = f"{before}{start}\n{table}\n{end}{rest.split(end)[1]}"
    PAGE.write_text(text)


if __name__ == "__main__":
    os.environ["WANDB_MODE"] = "disabled"
    torch.set_num_threads(1)
    chosen = sys.argv[1:]
    cases = [case for case in [*quick_cases(), *of_runs()] if not chosen or case.group in chosen]
    outcomes = try_all(cases)
    if not chosen:
        content = kept(outcomes)
        KEPT.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        update_page(content)
    print(f"{len(outcomes)} inputs, {sum(not each.as_expected for each in outcomes)} not as expected")
    sys.exit(any(not each.as_expected for each in outcomes))
