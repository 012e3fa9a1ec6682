"""The plot of a sweep: each metric against each swept setting."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dinotrack.errors import DinotrackError
from dinotrack.files import write_atomically
from dinotrack.scoreboard import LABELS
from dinotrack.training.ablations import mean_and_error
from dinotrack.training.sweep_jobs import Job
from dinotrack.training.sweep_report import Point, metrics_in, points_of, shown_value, swept_in

LINES = 6
"""At most so many lines in one plot; more values of another setting are averaged."""
WIDTH, HEIGHT, DPI = 4.2, 2.7, 110
"""Inches of one plot."""


def save_plot(jobs: Sequence[Job], path: Path) -> None:
    """Draw each metric (rows) against each swept setting (columns) of a sweep into a PNG.

    Bars are standard errors over seeds and clips. One other setting gives a line for each of its values; of several others
    the mean is drawn, bars are then the standard deviation over them. What is no grid, as a search, is drawn as points.

    Raises:
        DinotrackError: without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DinotrackError(
            "the plot needs matplotlib: pip install 'dinotrack[sweep]'; --no-plot leaves it out, CSV and Markdown are written"
        ) from error
    swept, metrics, points = swept_in(jobs), metrics_in(jobs), points_of(jobs)
    grid = is_grid(jobs, swept)
    size = (max(WIDTH * len(swept), 1.4 * WIDTH), HEIGHT * len(metrics) + 0.9)
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    axes = figure.subplots(len(metrics), len(swept), squeeze=False, sharey="row")
    for (row, metric), (column, name) in itertools.product(enumerate(metrics), enumerate(swept)):
        draw(axes[row][column], points, metric, name, swept, grid)
        if column == 0:
            axes[row][column].set_ylabel(f"{LABELS[metric]} (%)" if metric in LABELS else metric)
        if row == len(metrics) - 1:
            logarithmic = axes[row][column].get_xscale() != "linear"
            axes[row][column].set_xlabel(f"{name} (log scale)" if logarithmic else name)
    for column in range(len(swept)):
        handles, labels = axes[0][column].get_legend_handles_labels()
        if len(handles) > 1:
            options = {"title": other_of(swept, swept[column]), "fontsize": 8, "title_fontsize": 8, "frameon": False}
            axes[0][column].legend(
                handles, labels, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(handles), **options
            )
    figure.suptitle(title_of(jobs, points, swept, grid), fontsize=9)
    write_atomically(path, lambda name: figure.savefig(name, format="png"))


def title_of(jobs: Sequence[Job], points: Sequence[Point], swept: Sequence[str], grid: bool) -> str:
    """What is drawn, what the bars are, and how many jobs are not in it."""
    command = next((job.command for job in jobs if job.command), "")
    parts = [f"dinotrack {command}, {len(jobs)} jobs"]
    counts = {point.jobs for point in points} or {1}
    least, most = min(counts), max(counts)
    if grid and averaged(points, swept):
        parts.append("mean ± standard deviation over the other settings")
    elif most > 1:
        parts.append(f"mean ± standard error of {most if least == most else f'{least} to {most}'} jobs")
    missing = sum(job.status != "done" for job in jobs)
    if missing:
        parts.append(f"{missing} without a result")
    return "; ".join(parts)


def is_grid(jobs: Sequence[Job], swept: Sequence[str]) -> bool:
    """Whether every combination of values was asked for."""
    combinations = {tuple(str(job.values.get(name)) for name in swept) for job in jobs}
    counts = [len({str(job.values.get(name)) for job in jobs}) for name in swept]
    return len(combinations) == math.prod(counts)


def averaged(points: Sequence[Point], swept: Sequence[str]) -> bool:
    """Whether other settings are averaged: there are several, or too many lines."""
    return len(swept) > 2 or (len(swept) == 2 and any(len(choices(points, name)) > LINES for name in swept))


def other_of(swept: Sequence[str], name: str) -> str:
    """The one other setting, whose values are lines."""
    return next((other for other in swept if other != name), "")


def choices(points: Sequence[Point], name: str) -> list[Any]:
    """The values of a setting in their order: numbers by size, others as they came."""
    values = list({str(point.values[name]): point.values[name] for point in points}.values())
    return sorted(values) if numeric(values) else values


def numeric(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def draw(axis: Any, points: Sequence[Point], metric: str, name: str, swept: Sequence[str], grid: bool) -> None:
    """One metric against one setting."""
    values = choices(points, name)
    places: dict[str, float] = {str(value): value if numeric(values) else place for place, value in enumerate(values)}
    set_scale(axis, values)
    drawn = [point for point in points if metric in point.means]
    if not grid:
        axis.plot(
            [places[str(p.values[name])] for p in drawn], [p.means[metric][0] for p in drawn], "o", ms=4, alpha=0.8
        )
        return
    other = "" if averaged(points, swept) else other_of(swept, name)
    for each in choices(points, other) if other else [None]:
        line = [point for point in drawn if not other or str(point.values[other]) == str(each)]
        xs, means, errors = curve(line, metric, name, places)
        bars = [error or math.nan for error in errors]  # of a single job there is none
        axis.errorbar(xs, means, bars, marker="o", ms=4, lw=1.3, capsize=3, label=shown_value(each))


def curve(
    points: Sequence[Point], metric: str, name: str, places: dict[str, float]
) -> tuple[list[float], list[float], list[float]]:
    """Places, means and half lengths of the bars of one line, from left to right."""
    found: dict[float, list[tuple[float, float]]] = {}
    for point in points:
        found.setdefault(places[str(point.values[name])], []).append(point.means[metric])
    xs = sorted(found)
    means = [mean_and_error([mean for mean, _ in found[x]])[0] for x in xs]
    errors = [
        found[x][0][1] if len(found[x]) == 1 else mean_and_error([m for m, _ in found[x]])[1] * math.sqrt(len(found[x]))
        for x in xs
    ]
    return xs, means, errors


def set_scale(axis: Any, values: Sequence[Any]) -> None:
    """Ticks at the values: logarithmic where their ratios are more even than their differences, names for what is no number."""
    axis.grid(True, alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    if not numeric(values):
        axis.set_xlim(-0.4, len(values) - 0.6)
        axis.set_xticks(range(len(values)), [shown_value(value) for value in values])
        return
    positive = [value for value in values if value > 0]
    if log_spaced(positive) and values[0] >= 0:
        axis.set_xscale("symlog", linthresh=positive[0]) if values[0] == 0 else axis.set_xscale("log")
    if len(values) <= 8:
        axis.set_xticks(values, [shown_value(float(value)) for value in values])
        axis.minorticks_off()


def log_spaced(values: Sequence[float]) -> bool:
    """Whether increasing positive values lie more evenly by their ratios than by their differences; two, if a factor of 4 apart."""
    if len(values) < 3:
        return len(values) == 2 and values[1] / values[0] >= 4
    pairs = list(itertools.pairwise(values))
    return uneven([math.log(b / a) for a, b in pairs]) < uneven([b - a for a, b in pairs])


def uneven(steps: Sequence[float]) -> float:
    """Standard deviation over mean."""
    mean = sum(steps) / len(steps)
    return math.sqrt(sum((step - mean) ** 2 for step in steps)) / mean
