"""`dinotrack sweep-report`: the jobs of a sweep as CSV, Markdown and a plot."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dinotrack.files import write_atomically
from dinotrack.scoreboard import HEADLINE, LABELS, as_csv, markdown
from dinotrack.training.ablations import mean_and_error
from dinotrack.training.sweep_jobs import REPLICATES, TOLD, Job, read_jobs

TOTAL = "seconds"


@dataclass(frozen=True)
class Point:
    """Jobs with the same values but for seeds and clips: means of each metric with their standard errors."""

    values: dict[str, Any]
    jobs: int
    means: dict[str, tuple[float, float]]


def write_report(folder: Path, output: Path | None = None, *, plot: bool = True) -> list[Path]:
    """Write report.csv, report.md and report.png of the jobs in a folder there, or beside `output`; the paths.

    Raises:
        DinotrackError: when there are no jobs, a file cannot be written, or matplotlib is missing for the plot.
    """
    jobs = read_jobs(folder)
    base = output or folder / "report"
    exact = {name for job in jobs for name in (*job.values, *job.losses)}  # 2e-5 has no first four places
    texts = {".csv": as_csv([row_of(job) for job in jobs], exact), ".md": page(folder.resolve().name, jobs)}
    paths = []
    for ending, text in texts.items():
        paths.append(base.with_name(base.name + ending))
        write_atomically(paths[-1], lambda name, text=text: name.write_text(text))
    if plot and swept_in(jobs) and metrics_in(jobs):
        from dinotrack.training.sweep_plot import save_plot

        paths.append(base.with_name(f"{base.name}.png"))
        save_plot(jobs, paths[-1])
    return paths


def row_of(job: Job) -> dict[str, Any]:
    """A job's line in the CSV."""
    seconds = {f"{TOTAL}_{name}": value for name, value in job.seconds.items()}
    total = {TOTAL: sum(job.seconds.values())} if job.seconds else {}
    about = {"job": job.folder, "status": job.status, "reason": job.reason}
    return {**about, **job.values, **job.scores, **job.losses, **seconds, **total, **job.about}


def swept_in(jobs: Sequence[Job]) -> list[str]:
    """Names of the settings that differ between jobs, without those over which a report averages."""
    names = list(dict.fromkeys(name for job in jobs for name in job.values if name not in REPLICATES))
    return [name for name in names if len({str(job.values.get(name)) for job in jobs}) > 1]


def metrics_in(jobs: Sequence[Job]) -> list[str]:
    """Names of the metrics that are shown: scores, or where no job has ground truth, losses."""
    scores = [name for name in HEADLINE if any(name in job.scores for job in jobs)]
    return scores or list(dict.fromkeys(name for job in jobs for name in job.losses))


def points_of(jobs: Sequence[Job]) -> list[Point]:
    """The finished jobs, those that differ only in seeds and clips taken together."""
    swept = swept_in(jobs)
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        if job.status == "done":
            groups.setdefault(str([job.values.get(name) for name in swept]), []).append(job)
    return [point_of({name: group[0].values.get(name) for name in swept}, group) for group in groups.values()]


def point_of(values: dict[str, Any], jobs: Sequence[Job]) -> Point:
    """Means over jobs; a score that is NaN or absent in a job does not count."""
    rows = [{**job.scores, **job.losses, TOTAL: sum(job.seconds.values())} for job in jobs]
    found = {
        name: [row[name] for row in rows if row.get(name, float("nan")) == row.get(name)]
        for row in rows
        for name in row
    }
    return Point(values, len(jobs), {name: mean_and_error(each) for name, each in found.items() if each})


def page(name: str, jobs: Sequence[Job]) -> str:
    """The report in Markdown: means, every job, and those without a result."""
    counted = ", ".join(f"{count} {status}" for status, count in Counter(job.status for job in jobs).items())
    parts = [f"# Sweep {name}", f"{len(jobs)} jobs: {counted}."]
    common = [word for word in jobs[0].overrides if all(word in job.overrides for job in jobs)]
    command = next((job.command for job in jobs if job.command), "")
    if common and command:
        shown = " ".join(word for word in common if not word.startswith(TOLD))
        parts.append(f"In all: `{command} {shown}`")
    points = points_of(jobs)
    if points:
        notes = ["mean ± standard error over seeds and clips"] if any(point.jobs > 1 for point in points) else []
        notes += ["the best in bold"] if best_of(points, metrics_in(jobs)) else []
        parts += [f"{'; '.join(notes).capitalize()}."] if notes else []
        parts.append(means_table(points, metrics_in(jobs)))
    parts += ["## Every job", jobs_table(jobs)]
    missing = [job for job in jobs if job.status != "done"]
    if missing:
        lines = [[job.folder or "–", said(job.values), job.status, job.reason or "–"] for job in missing]
        parts += ["## Without a result", markdown(["job", "values", "status", "reason"], lines)]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def means_table(points: Sequence[Point], metrics: Sequence[str]) -> str:
    """A line for each combination of values."""
    names = list(points[0].values)
    titles = [*names, "jobs", *(LABELS.get(name, name) for name in metrics), TOTAL]
    best = best_of(points, metrics)
    lines = []
    for point in points:
        cells = [shown_value(point.values[name]) for name in names] + [str(point.jobs)]
        for name in (*metrics, TOTAL):
            mean, error = point.means.get(name, (None, 0.0))
            text = "–" if mean is None else number(mean, name) + (f" ± {number(error, name)}" if point.jobs > 1 else "")
            cells.append(f"**{text}**" if mean is not None and mean == best.get(name) else text)
        lines.append(cells)
    return markdown(titles, lines)


def best_of(points: Sequence[Point], metrics: Sequence[str]) -> dict[str, float]:
    """The highest mean of each score among several points; of losses none, as their weights may be what is swept."""
    means = {name: [p.means[name][0] for p in points if name in p.means] for name in metrics if name in LABELS}
    return {name: max(values) for name, values in means.items() if len(values) > 1}


def jobs_table(jobs: Sequence[Job]) -> str:
    """A line for each job: values, scores and the seconds of its stages."""
    values = list(dict.fromkeys(name for job in jobs for name in job.values))
    metrics = metrics_in(jobs)
    stages = list(dict.fromkeys(name for job in jobs for name in job.seconds))
    titles = [
        "job",
        *values,
        "status",
        *(LABELS.get(name, name) for name in metrics),
        *(f"{name} s" for name in stages),
    ]
    lines = []
    for job in jobs:
        found = {**job.scores, **job.losses}
        cells = [job.folder or "–", *(shown_value(job.values[name]) if name in job.values else "–" for name in values)]
        cells += [job.status, *(number(found[name], name) if name in found else "–" for name in metrics)]
        lines.append([*cells, *(f"{job.seconds[name]:.1f}" if name in job.seconds else "–" for name in stages)])
    return markdown(titles, lines)


def number(value: float, name: str) -> str:
    """A score or seconds to one place; a loss to three digits."""
    return f"{value:.1f}" if name in LABELS or name == TOTAL else f"{value:.3g}"


def shown_value(value: Any) -> str:
    """A swept value as a reader writes it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def said(values: dict[str, Any]) -> str:
    return ", ".join(f"{name}={shown_value(value)}" for name, value in values.items())
