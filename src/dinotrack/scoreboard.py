"""From the folder of an evaluation to its tables: predictions and ground truth lie there, scoring again costs nothing."""

import csv
import io
import logging
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Column, Table

from dinotrack.benchmark_metrics import flattened
from dinotrack.data.export import load_npz
from dinotrack.errors import DinotrackError
from dinotrack.evaluation import score_tracks
from dinotrack.files import write_atomically
from dinotrack.metrics import occlusion_rate
from dinotrack.sealed import read_json
from dinotrack.structs import PointTruth, Tracks

log = logging.getLogger(__name__)

TRACKS, TRUTH, SUMMARY = "tracks.npz", "truth.safetensors", "summary.json"
"""What a finished clip has in its folder; the summary is written last."""
CSV, MARKDOWN = "scores.csv", "scores.md"
GROUPS = ("low", "middle", "high")
"""Thirds of the clips by their occlusion rate ([P] Fig. 6)."""
ABOUT = ("benchmark", "method", "clip", "mode", "size", "frames", "queries", "occlusion", "group")
COST = ("seconds", "peak_memory_mb", "peak_gpu_memory_mb", "commit", "hardware", "settings", "config")
LABELS = {
    "delta_avg": "δ_avg",
    "oa": "OA",
    "aj": "AJ",
    "delta_seg": "δ_seg",
    "delta_3px": "δ_3px",
    "delta_seg_later": "δ_seg later",
    "delta_3px_later": "δ_3px later",
}
HEADLINE = tuple(LABELS)
"""The scores that a table shows; the CSV has all."""


def finished(folder: Path) -> list[Path]:
    """Folders of the clips that were predicted, sorted by name."""
    return sorted(path.parent for path in folder.glob(f"*/{SUMMARY}"))


def summary_of(folder: Path) -> dict[str, Any]:
    """The summary of a finished clip.

    Raises:
        DinotrackError: for one that is damaged, naming the folder to delete.
    """
    remedy = f"delete {folder} to predict it again"
    summary = read_json(folder / SUMMARY, remedy)
    if not {"evaluation", "environment", "stages"} <= summary.keys():
        raise DinotrackError(f"{folder / SUMMARY} is damaged: it is of no benchmark's clip; {remedy}")
    return summary


def read_clip(folder: Path) -> tuple[dict[str, Any], PointTruth, Tracks]:
    """Summary, ground truth and tracks of a finished clip.

    Raises:
        DinotrackError: for files that are missing or damaged, naming the folder to delete.
    """
    summary = summary_of(folder)
    try:
        return summary, PointTruth.load(folder / TRUTH), load_npz(folder / TRACKS)
    except DinotrackError as error:
        raise DinotrackError(f"{error}: delete {folder} to predict it again") from error


def clip_row(folder: Path) -> dict[str, Any]:
    """Scores and cost of one clip.

    Raises:
        DinotrackError: for files that are missing or damaged, naming the folder to delete.
    """
    summary, truth, tracks = read_clip(folder)
    about, environment, stages = summary["evaluation"], summary["environment"], summary["stages"]
    cost = {
        "seconds": round(sum(stage["seconds"] for stage in stages), 2),
        "peak_memory_mb": max((stage["peak_memory_mb"] for stage in stages), default=0.0),
        "peak_gpu_memory_mb": max((stage["peak_gpu_memory_mb"] for stage in stages), default=0.0),
        "commit": environment["commit"],
        "hardware": environment["hardware"],
        "settings": about["settings_hash"],
        "config": (folder / "config.yaml").as_posix(),
    }
    try:
        scores = flattened(score_tracks(truth, tracks))
    except DinotrackError as error:
        raise DinotrackError(f"{error}: delete {folder} to predict it again") from error
    return {
        **{name: about[name] for name in ("benchmark", "method", "clip")},
        "mode": truth.mode,
        "size": f"{truth.size[0]}x{truth.size[1]}",
        "frames": tracks.xy.shape[1],
        "queries": len(truth),
        "occlusion": round(100 * occluded_share(truth), 2),
        **scores,
        **cost,
    }


def occluded_share(truth: PointTruth) -> float:
    """Mean occlusion rate of the clip's tracks, each counted once however often it is queried; NaN of none."""
    if not len(truth):
        return math.nan
    answers = torch.cat([truth.visible[..., None].double(), truth.xy.double() * truth.visible[..., None]], -1)
    tracks = answers.nan_to_num(0.0).flatten(1).unique(dim=0)
    return float(occlusion_rate(tracks.view(-1, len(truth.frames), 3)[..., 0] > 0).mean())


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """A row for each finished clip, with its third by occlusion rate.

    Raises:
        DinotrackError: when no clip is finished, or one is damaged.
    """
    rows = [clip_row(path) for path in finished(folder)]
    if not rows:
        raise DinotrackError(f"{folder} has no predictions; make them with dinotrack evaluate folder={folder}")
    known = sorted(
        (row for row in rows if not math.isnan(row["occlusion"])), key=lambda row: (row["occlusion"], row["clip"])
    )
    groups = {
        row["clip"]: GROUPS[3 * place // len(known)] if len(known) >= 3 else "" for place, row in enumerate(known)
    }
    return [{**row, "group": groups.get(row["clip"], "")} for row in rows]


def means_of(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One row: means over clips of every score, without the clips where it is NaN, and what they cost."""
    own = {*ABOUT, *COST}
    scores = dict.fromkeys(name for row in rows for name in row if name not in own)
    first = rows[0]
    line: dict[str, Any] = {name: first[name] for name in ("benchmark", "method", "mode")} | {"clips": len(rows)}
    line |= {name: mean([row[name] for row in rows if name in row]) for name in scores}
    line["seconds"] = mean([row["seconds"] for row in rows])
    line |= {name: max(row[name] for row in rows) for name in ("peak_memory_mb", "peak_gpu_memory_mb")}
    return line | {name: " / ".join(sorted({row[name] for row in rows})) for name in ("commit", "hardware")}


def mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def by_group(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The means of each third by occlusion rate; none of fewer than three clips."""
    parts = {group: [row for row in rows if row["group"] == group] for group in GROUPS}
    return [
        {"group": group, "occlusion": mean([row["occlusion"] for row in part]), **means_of(part)}
        for group, part in parts.items()
        if part
    ]


def as_csv(rows: Sequence[dict[str, Any]], exact: Collection[str] = ()) -> str:
    """Rows as CSV: what they are about, all scores to four places but for the columns `exact`, what they cost."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = [
        *(name for name in ABOUT if name in names),
        *(name for name in names if name not in (*ABOUT, *COST)),
        *(name for name in COST if name in names),
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: value if name in exact else rounded(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


def rounded(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value


def headline(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Column titles and cells of a table of means: `names`, then the scores, the seconds a clip and the peak memory."""
    scores = [name for name in HEADLINE if any(name in row for row in rows)]
    titles = [*names, *(LABELS[name] for name in scores), "s a clip", "peak MB"]
    cells = [
        [
            *(f"{row[name]:.1f}" if isinstance(row[name], float) else str(row[name]) for name in names),
            *(f"{row[name]:.1f}" if name in row and not math.isnan(row[name]) else "–" for name in scores),
            f"{row['seconds']:.1f}",
            f"{max(row['peak_memory_mb'], row['peak_gpu_memory_mb']):.0f}",
        ]
        for row in rows
    ]
    return titles, cells


def markdown(titles: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; what would end a cell is spelt out."""
    escaped = [[" ".join(cell.replace("|", "\\|").splitlines()) for cell in line] for line in (titles, *cells)]
    lines = [escaped[0], ["---"] * len(titles), *escaped[1:]]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write_scores(folder: Path) -> list[dict[str, Any]]:
    """Score what is in the folder of an evaluation, and write scores.csv and scores.md there; the rows.

    Raises:
        DinotrackError: as `rows_of` does, or when they cannot be written.
    """
    rows = rows_of(folder)
    while len(finished(folder)) > len(rows):  # another job has finished a clip meanwhile
        rows = rows_of(folder)
    parts = [markdown(*headline([means_of(rows)], ("benchmark", "method", "clips")))]
    if groups := by_group(rows):
        parts.append("By occlusion rate, a third of the clips each:\n\n")
        parts[-1] += markdown(*headline(groups, ("group", "occlusion", "clips")))
    parts.append(markdown(*headline(rows, ("clip", "frames", "queries", "occlusion"))))
    write_atomically(folder / CSV, lambda name: name.write_text(as_csv(rows)))
    write_atomically(folder / MARKDOWN, lambda name: name.write_text("\n".join(parts)))
    return rows


def compare(folders: Sequence[Path], output: Path | None = None) -> list[list[dict[str, Any]]]:
    """Score folders and print one table of their means, a line each; with `output` write output.csv and output.md as well.

    Returns:
        the rows of each folder that has predictions.

    Raises:
        DinotrackError: as `write_scores` does.
    """
    empty = [folder for folder in folders if not finished(folder)]
    if len(empty) == len(folders):
        write_scores(folders[0])  # which says what to do
    for folder in empty:
        log.warning("%s has no predictions", folder)
    rows = [write_scores(folder) for folder in folders if folder not in empty]
    titles, cells = headline([means_of(each) for each in rows], ("benchmark", "method", "clips"))
    table = Table(*(Column(title, no_wrap=title in ("benchmark", "method")) for title in titles))
    for line in cells:
        table.add_row(*line)
    Console().print(table)
    if output is not None:
        every = [row for each in rows for row in each]
        write_atomically(output.with_name(f"{output.name}.csv"), lambda path: path.write_text(as_csv(every)))
        write_atomically(output.with_name(f"{output.name}.md"), lambda path: path.write_text(markdown(titles, cells)))
    return rows
