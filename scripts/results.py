"""Measure what the README prints: run the demo and the real clips, keep rows in docs/results, pictures in docs/images.

python scripts/results.py demo horsejump cat   # measure again, several minutes each; every job is in JOBS
python scripts/results.py benchmarks           # three methods on two benchmarks, about 25 minutes; goes on where it was stopped
python scripts/results.py                      # only write the README's tables from the kept rows
"""

import csv
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import chrono
import fewer_steps

from dinotrack.scoreboard import compare
from dinotrack.training import planning
from dinotrack.training.planning import duration, size
from dinotrack.training.stages import commit

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # benchmarks, which are not installed
RESULTS, IMAGES = ROOT / "docs" / "results", ROOT / "docs" / "images"
DATA = (ROOT.parent / "shared" / "data").resolve()
HORSE = [f"video={DATA / 'horsejump-high' / 'video'}", f"truth={DATA / 'horsejump-high' / 'badja.json'}"]
HORSE_MASKS = f"masks={DATA / 'horsejump-high' / 'masks'}"
JOBS = {
    "demo": ["demo"],
    "horsejump": ["run", "experiment=cpu_small", *HORSE, HORSE_MASKS, "queries=grid:20", "queries_on_mask=true"],
    "horsejump_without_masks": ["run", "experiment=cpu_small", HORSE[0]],
    "paragliding": ["run", "experiment=cpu_small", f"video={DATA / 'paragliding.mp4'}"],
    "cat": ["run", "experiment=cpu_small", f"video={DATA / 'cat.mp4'}"],
}
BADJA = [
    f"benchmark.path={DATA}",
    *(f'benchmark.{k}="{{name}}/{v}"' for k, v in (("joints", "badja.json"), ("frames", "video"))),
]
BENCHMARKS = {
    "synthetic": ["benchmark=synthetic", "experiment=demo"],
    "badja": ["benchmark=badja", "experiment=cpu_small", *BADJA, 'benchmark.masks="{name}/masks"'],
}
METHODS = ("raw_features", "flow_chain", "dino_tracker")
NAMES = {"raw_features": "raw features", "flow_chain": "chained flow", "dino_tracker": "fitted tracker"}
COLUMNS = {
    "demo": {"delta_avg": "δ_avg", "oa": "OA", "aj": "AJ"},
    "horsejump": {
        "delta_seg": "δ_seg",
        "delta_3px": "δ_3px",
        "delta_seg_later": "δ_seg later",
        "delta_3px_later": "δ_3px later",
    },
}


SYMBOLS = {"delta_avg": "δ_avg", "oa": "OA", "aj": "AJ", "delta_seg": "δ_seg", "delta_3px": "δ_3px"}


def measure(name: str) -> None:
    """Run a job in a folder of its own with a cache of its own, and keep its row and its picture."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        options = [f"hydra.run.dir={folder}", f"cache_dir={Path(scratch) / 'cache'}"]
        subprocess.run([Path(sys.executable).parent / "dinotrack", *JOBS[name], "logger=csv", *options], check=True)
        kept: dict[str, Any] = {"command": ["dinotrack", *(show(word) for word in JOBS[name])], "commit": commit()}
        first = folder / "seed-0" if name == "demo" else folder
        for file in ("demo.json", "metrics.json", "summary.json"):
            for place in dict.fromkeys((folder, first)):
                if (place / file).exists():
                    kept[file.removesuffix(".json")] = json.loads((place / file).read_text())
        if "summary" in kept:
            kept["summary"]["video"]["path"] = show(kept["summary"]["video"]["path"])
        kept = {**kept, "metrics": round_all(kept["metrics"])} if "metrics" in kept else kept
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(kept, indent=2) + "\n")
        picture(first / "overlay.mp4", IMAGES / f"{name}.png")


def measure_benchmarks() -> None:
    """Evaluate each method on each benchmark in a folder under runs/, and keep every clip's row."""
    for name, words in BENCHMARKS.items():
        folders = {method: ROOT / "runs" / "results" / f"{name}-{method}" for method in METHODS}
        for method, folder in folders.items():
            command = [Path(sys.executable).parent / "dinotrack", "evaluate", *words, f"method={method}"]
            own_cache = f"cache_dir={folder}-cache"  # each method pays for its own preprocessing
            subprocess.run([*command, f"folder={folder}", own_cache], check=True, cwd=ROOT)
        compare(list(folders.values()), RESULTS / f"benchmark_{name}")
        (RESULTS / f"benchmark_{name}.md").unlink()  # the pages have tables of their own


def kept_rows(name: str) -> dict[str, list[dict[str, str]]]:
    """The rows of a benchmark by method."""
    with open(RESULTS / f"benchmark_{name}.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return {method: [row for row in rows if row["method"] == method] for method in METHODS}


def average(rows: list[dict[str, str]], score: str) -> float:
    known = [float(row[score]) for row in rows if row[score] not in ("", "nan")]
    return sum(known) / len(known)


def benchmark(
    name: str, columns: dict[str, str], parts: dict[str, list[str]], part_column: str, part_score: str
) -> str:
    """Means over clips, and one score's means over parts of them; the best of each column is bold."""
    rows = kept_rows(name)
    titles = ["method", *columns.values(), *(f"{SYMBOLS[part_score]}, {part}" for part in parts), "s a clip", "peak GB"]
    figures = {
        method: [
            *(average(each, score) for score in columns),
            *(average([r for r in each if r[part_column] in values], part_score) for values in parts.values()),
        ]
        for method, each in rows.items()
    }
    best = [max(column) for column in zip(*figures.values(), strict=True)]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for method, values in figures.items():
        cells = [f"**{v:.1f}**" if v == top else f"{v:.1f}" for v, top in zip(values, best, strict=True)]
        cells.append(f"{average(rows[method], 'seconds'):.1f}")
        cells.append(f"{max(float(row['peak_memory_mb']) for row in rows[method]) / 1000:.1f}")
        lines.append(f"| {NAMES[method]} | " + " | ".join(cells) + " |")
    every = [row for each in rows.values() for row in each]
    commits, machines = (", ".join(sorted({row[key] for row in every})) for key in ("commit", "hardware"))
    clips = len({row["clip"] for row in every})
    return "\n".join([*lines, "", f"({clips} clip{'s' * (clips > 1)}; commit {commits}; {machines})"])


def synthetic_by_kind() -> str:
    clips = sorted({row["clip"] for row in kept_rows("synthetic")["raw_features"]})
    kinds = {
        kind: [c for c in clips if c.startswith(kind)] for kind in ("smooth", "deformation", "occlusion", "look_alikes")
    }
    named = {kind.replace("_", "-"): clips for kind, clips in kinds.items()}
    return benchmark("synthetic", {"delta_avg": "δ_avg", "oa": "OA", "aj": "AJ"}, named, "clip", "aj")


def synthetic_by_occlusion() -> str:
    groups = {group: [group] for group in ("low", "middle", "high")}
    return benchmark("synthetic", {"aj": "AJ"}, groups, "group", "aj")


def speed(size: str) -> str:
    """The table of `python -m benchmarks.run --size SIZE`."""
    from benchmarks.run import table as speed_table

    rows = json.loads((RESULTS / f"speed-{size}-cpu.json").read_text())
    return f"{speed_table(rows, size)}\n{measured_where(rows)}"


def plans() -> str:
    """What `dinotrack plan` says beside what each command then held."""
    kept = json.loads((RESULTS / "plans.json").read_text())
    lines = ["| size | command | planned, MB | measured, MB | off |", "|---|---|---|---|---|"]
    for row in kept["rows"]:
        cells = [
            row["size"],
            row["command"],
            str(row["planned_mb"]),
            str(row["measured_mb"]),
            f"{round(row['off'], 2) + 0.0:+.0%}",
        ]
        lines.append(f"| {' | '.join(cells).replace('%', ' %')} |")
    worst = max(abs(row["off"]) for row in kept["rows"])
    goal = "met" if worst < 0.25 else "MISSED"
    note = f"Goal, within 25 % of the measured peak: {goal}. ({where(kept['rows'])})"
    return "\n".join([*lines, "", note])


def limited() -> str:
    """What each command held under a limit, beside the plan."""
    rows = json.loads((RESULTS / "plans.json").read_text())["limited"]
    lines = ["| size | command | limit, MB | planned, MB | measured, MB |", "|---" * 5 + "|"]
    names = ("size", "command", "limit_mb", "planned_mb", "measured_mb")
    lines += [f"| {' | '.join(str(row[name]) for name in names)} |" for row in rows]
    goal = "met" if all(row["within"] for row in rows) else "MISSED"
    return "\n".join([*lines, "", f"Goal, within the limit: {goal}. ({where(rows)})"])


def where(rows: list[dict[str, Any]]) -> str:
    """Commits and machines of some rows."""
    commits, machines = (", ".join(sorted({row[key] for row in rows})) for key in ("commit", "hardware"))
    return f"commit {commits}; {machines}"


def plan_480p() -> str:
    """What `dinotrack plan` says of 1 000 frames at 480p."""
    kept = json.loads((RESULTS / "plan_480p.json").read_text())
    heads = ("stage", "time", "memory", "of it spared where it does not fit", "disk", "temporary files")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for need in kept["needs"]:
        amounts = [size(need[name]) if need[name] else "" for name in ("memory", "spare", "disk", "temporary")]
        lines.append(f"| {need['name']} | {duration(need['seconds'])} | {' | '.join(amounts)} |")
    said = [f"- {line}" for line in kept["lines"]]
    words = " ".join(kept["command"])
    note = f"`{words}`: {kept['seconds']:.0f} s, {kept['held_mb']} MB held; commit {kept['commit']}; {kept['hardware']}"
    least = {need["name"]: need["memory"] - need["spare"] for need in kept["needs"]}
    worst = max(least, key=lambda name: least[name])
    goal = "met" if least[worst] <= kept["room"] else "MISSED"
    bound = f"Goal, each stage planned within {size(kept['room'])}: {goal} (at most {size(least[worst])}, {worst})."
    return "\n".join([*lines, "", *said, "", f"{bound} ({note})"])


def long_tracklets() -> str:
    """What tracklets of a thousand frames took."""
    kept = json.loads((RESULTS / "long_tracklets.json").read_text())
    lines = [
        "| frames | size | tracklets | positions | all at once, MB | before, MB | limit | building, MB | table, MB |",
        "|---" * 9 + "|",
    ]
    counts = [f"{kept[name]:,}" for name in ("tracklets", "positions", "whole_mb", "before_mb")]
    peaks = [kept["limit_mb"], *(f"{kept[name]:,}" for name in ("building_mb", "table_mb"))]
    sizes = [f"{kept['frames']:,}", "x".join(map(str, kept["size"]))]
    lines.append(f"| {' | '.join([*sizes, *counts, *peaks])} |")
    goal = "met" if kept["within"] else "MISSED"
    note = f"`python -m scripts.long_tracklets`; commit {kept['commit']}; {kept['hardware']}"
    return "\n".join([*lines, "", f"Goal, within the limit: {goal}. ({note})"])


def long_step() -> str:
    """What training steps at that size took."""
    kept = json.loads((RESULTS / "long_step.json").read_text())
    lines = ["| step | limit, MB | before, MB | at most, MB | written to disk, MB | s |", "|---" * 6 + "|"]
    names, columns = ("measured", "each after it"), [kept[name] for name in ("peaks_mb", "written_mb", "seconds")]
    for name, *cells in zip(names, *columns, strict=True):
        lines.append(f"| {' | '.join(map(str, [name, kept['limit_mb'], kept['before_mb'], *cells]))} |")
    goal = "met" if kept["within"] else "MISSED"
    note = f"`python -m scripts.long_step`; commit {kept['commit']}; {kept['hardware']}"
    return "\n".join([*lines, "", f"Goal, within the limit: {goal}. ({note})"])


def counts() -> str:
    """What the plan takes for granted of a video, counted in real ones."""
    kept = json.loads((RESULTS / "counts.json").read_text())
    lines = [
        "| clip | frames | size | positions a pixel | tracklets a pixel | best buddies a token |",
        "|---" * 6 + "|",
    ]
    for row in kept["rows"]:
        cells = [
            row["frames"],
            "x".join(map(str, row["size"])),
            *(row[name] for name in ("positions", "tracklets", "best_buddies")),
        ]
        lines.append(f"| {row['clip']} | {' | '.join(map(str, cells))} |")
    taken = f"| the plan takes | | | {planning.POSITIONS} | {planning.TRACKLETS} | {planning.BUDDIES} |"
    note = f"`python -m scripts.counts`, DIS and dense SIFT; commit {kept['commit']}; {kept['hardware']}"
    return "\n".join([*lines, taken, "", f"({note})"])


def bounds() -> str:
    """What a limit on memory costs where there is enough of it: rows of `benchmarks.run` before and after."""
    before, after = (json.loads((RESULTS / f"bounds-{name}.json").read_text()) for name in ("before", "after"))
    lines = ["| stage | size | before, s | after, s | ratio | before, MB | after, MB |", "|---" * 7 + "|"]
    for old, new in zip(before, after, strict=True):
        times = [f"{row['seconds']:.3g}" for row in (old, new)] + [f"{old['seconds'] / new['seconds']:.2f}"]
        peaks = [f"{row['peak_mb']:.0f}" for row in (old, new)]
        lines.append(f"| {' | '.join([old['stage'], old['size'], *times, *peaks])} |")
    note = f"`python -m benchmarks.run STAGE --no-plain` in two clones, in turn; {where([*before, *after])}"
    return "\n".join([*lines, "", f"({note})"])


def throughput() -> str:
    """Points per second, by `python -m benchmarks.throughput`."""
    kept = json.loads((RESULTS / "throughput-M-cpu.json").read_text())
    named = {"chrono": "Chrono", "dino_tracker": "DINO-Tracker", "dino_tracker_positions": "its positions alone"}
    lines = [f"| queries | {', points/s | '.join(named.values())}, points/s | times |", "|---" * (len(named) + 2) + "|"]
    for count in sorted({row["queries"] for row in kept["rows"]}):
        rate = {row["method"]: row["points_per_second"] for row in kept["rows"] if row["queries"] == count}
        cells = [f"{rate[name]:,.0f}" for name in named]
        lines.append(f"| {count} | {' | '.join(cells)} | {rate['chrono'] / rate['dino_tracker']:.2f} |")
    (rows, columns), (side, _) = kept["tokens"]["dino_tracker"], kept["tokens"]["chrono"]
    about = (
        f"{kept['frames']} frames; {side}x{side} tokens of 768 for Chrono, {columns}x{rows} of 1024 for DINO-Tracker"
    )
    note = f"{about}; commit {kept['commit']}; {kept['hardware']}, {kept['cpu_threads']} threads"
    return "\n".join([*lines, "", f"(`python -m benchmarks.throughput`; {note})"])


def speed_growth() -> str:
    """Seconds against frames, by `python -m benchmarks.run --growth`."""
    rows = json.loads((RESULTS / "speed-growth-cpu.json").read_text())
    frames = rows[0]["frames"]
    titles = ["stage", *(f"{count} frames, s" for count in frames), "s a frame", "R² of the line", "exponent"]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for row in rows:
        fit = statistics.correlation(row["frames"], row["seconds"]) ** 2
        cells = [row["stage"], *(f"{value:.3g}" for value in row["seconds"]), f"{row['per_frame']:.3g}", f"{fit:.3f}"]
        lines.append("| " + " | ".join([*cells, f"{row['exponent']:.2f}"]) + " |")
    pairs = {row["stage"]: row for row in rows}["best_buddies"]
    constant = 1e3 * pairs["seconds"][-1] / (frames[-1] * (frames[-1] - 1) / 2)
    note = f"Best buddies: {constant:.1f} ms for each of the T(T - 1)/2 pairs of frames at {frames[-1]} frames."
    about = "The exponent is that between the last two columns: 1 is linear, 2 quadratic."
    return "\n".join([*lines, "", f"{note} {about}", "", measured_where(rows)])


def measured_where(rows: list[dict[str, Any]]) -> str:
    commits, machines = (", ".join(sorted({row[key] for row in rows})) for key in ("commit", "hardware"))
    rates = sorted(row["matrix_gflops"] for row in rows)
    return f"(commit {commits}; {machines}, {rates[0]:.0f} to {rates[-1]:.0f} GFLOP/s in products of matrices)"


def round_all(scores: Any) -> Any:
    """Scores to four places."""
    if isinstance(scores, dict):
        return {key: round_all(value) for key, value in scores.items()}
    return [round_all(value) for value in scores] if isinstance(scores, list) else round(scores, 4)


def show(word: str) -> str:
    """A path as it stands in the README."""
    return word.replace(str(DATA), "../shared/data")


def picture(overlay: Path, path: Path) -> None:
    """Four frames of an overlay side by side."""
    from PIL import Image

    from dinotrack import load_video
    from dinotrack.visualization import contact_sheet, save_png

    path.parent.mkdir(exist_ok=True)
    frames = load_video(overlay).frames
    save_png(contact_sheet(frames, columns=2, count=4, width=180), path)
    Image.open(path).quantize(256).save(path, optimize=True)  # a third of the bytes


def table(name: str) -> str:
    """The kept row of a job as Markdown."""
    kept = json.loads((RESULTS / f"{name}.json").read_text())
    scores = kept["demo"]["mean"] if name == "demo" else kept["metrics"]
    columns = COLUMNS[name]
    lines = ["| method | " + " | ".join(columns.values()) + " |", "|---" * (len(columns) + 1) + "|"]
    for method, values in scores.items():
        lines.append(f"| {NAMES[method]} | " + " | ".join(f"{values[key]:.1f}" for key in columns) + " |")
    if name == "demo":
        lines += ["", "; ".join(kept["demo"]["verdict"]) + "."]
    seconds = sum(stage["seconds"] for stage in kept["summary"]["stages"])
    memory = max(stage["peak_memory_mb"] for stage in kept["summary"]["stages"])
    what = "one of the three videos" if name == "demo" else "the run"
    lines += [
        "",
        f"(`{' '.join(kept['command'])}`; {what} took {seconds:.0f} s and at most {memory / 1000:.1f} GB; commit {kept['commit']})",
    ]
    return "\n".join(lines)


def costs() -> str:
    """Seconds of each stage and peak memory of the runs on real clips, as Markdown."""
    stages = ("preprocess", "fit", "track", "render")
    lines = ["| clip | frames | " + " | ".join(stages) + " | peak memory |", "|---" * (len(stages) + 3) + "|"]
    for name in ("horsejump", "horsejump_without_masks", "cat", "paragliding"):
        summary = json.loads((RESULTS / f"{name}.json").read_text())["summary"]
        seconds = {stage["name"]: stage["seconds"] for stage in summary["stages"]}
        memory = max(stage["peak_memory_mb"] for stage in summary["stages"]) / 1000
        video = summary["video"]
        what = f"{name.replace('_', ' ')}, {video['size'][0]}×{video['size'][1]} | {video['frames']}"
        lines.append(
            f"| {what} | " + " | ".join(f"{seconds[stage]:.0f} s" for stage in stages) + f" | {memory:.1f} GB |"
        )
    return "\n".join(lines)


def ablations(clip: str) -> str:
    """The kept table of `dinotrack ablate` for a clip as Markdown: mean ± standard error."""
    measures = {"synthetic": ("delta_avg", "oa", "aj"), "horsejump": ("delta_seg", "delta_3px")}[clip]
    with open(RESULTS / "ablations.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["clip"] == clip]
    main = measures[-1] if clip == "synthetic" else measures[0]
    heads = [SYMBOLS[name] for name in measures] + [f"{SYMBOLS[main]} − full", "seconds"]
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for row in rows:
        cells = [f"{float(row[name]):.1f} ± {float(row[f'{name}_se']):.1f}" for name in measures]
        apart = f"{float(row[f'{main}_vs_full']):+.1f} ± {float(row[f'{main}_vs_full_se']):.1f}"
        cells += ["" if row["ablation"] == "full" else apart, f"{float(row['seconds']):.0f}"]
        name = row["ablation"].replace("_", " ")
        lines.append(f"| {'**full**' if name == 'full' else name} | " + " | ".join(cells) + " |")
    about = rows[0]
    commits = ", ".join(sorted({row["commit"] for row in rows}))
    lines += [
        "",
        f"({about['runs']} seeds each; commit {commits}; {about['hardware']}, {about['cpu_threads']} thread a run)",
    ]
    return "\n".join(lines)


def intervals() -> str:
    """The rows of the ablation table that differ in when refined pairs are searched."""
    names = {
        "in_batch_pairs": "every step, its own frame pairs [C]",
        "rebuild_every_10": "every 10",
        "rebuild_every_20": "every 20",
        "full": "every 30 (default's proportion)",
        "rebuild_every_60": "once",
        "no_refined_losses": "no late losses",
    }
    with open(RESULTS / "ablations.csv", newline="") as file:
        rows = {row["ablation"]: row for row in csv.DictReader(file) if row["clip"] == "synthetic"}
    lines = ["| pairs searched | δ_avg | AJ | AJ − every 30 | seconds of fit and tracking |", "|---|---|---|---|---|"]
    for name, label in names.items():
        row = rows[name]
        cells = [f"{float(row[key]):.1f} ± {float(row[f'{key}_se']):.1f}" for key in ("delta_avg", "aj")]
        cells.append("" if name == "full" else f"{float(row['aj_vs_full']):+.2f} ± {float(row['aj_vs_full_se']):.2f}")
        lines.append(
            f"| {label} | " + " | ".join(cells) + f" | {float(row['seconds']):.0f} ± {float(row['seconds_se']):.0f} |"
        )
    return "\n".join(lines)


def lora() -> str:
    """Steps of LoRA beside Delta-DINO's."""
    kept = json.loads((RESULTS / "lora.json").read_text())
    lines = ["| | seconds a step: Delta-DINO | LoRA | ratio | ratio of operations |", "|---|---|---|---|---|"]
    for row in kept["measured"]:
        seconds, (width, height) = row.get("seconds_per_step"), row["size"]
        timed = (
            [f"{seconds[k]:.2f}" for k in ("delta_dino", "lora")] + [f"{row['ratio']:.2f}"]
            if seconds
            else ["not timed"] * 3
        )
        name = f"{row['model'].split('_')[1].capitalize()} ViT, layer {row['layer']}, {width}×{height}"
        lines.append(f"| {name} | " + " | ".join(timed) + f" | {row['gflop_ratio']:.2f} |")
    counted = kept["counted"]
    width, height = counted["size"]
    name = f"{counted['model'].split('_')[1].capitalize()} ViT, layer {counted['layer']}, {width}×{height}"
    lines.append(f"| {name} | " + "not timed | " * 3 + f"{counted['gflop_ratio']:.2f} |")
    return "\n".join([*lines, "", f"(commit {kept['commit']})"])


def confidence() -> str:
    """Average precision of confidence, the cosine and the binary rule."""
    kept = json.loads((RESULTS / "confidence.json").read_text())
    lines = ["| ordered by | visible | visible and near |", "|---|---|---|"]
    for name, areas in kept["average_precision"].items():
        lines.append(f"| {name} | " + " | ".join(f"{mean:.1f} ± {error:.1f}" for mean, error in areas.values()) + " |")
    return "\n".join([*lines, "", f"(`python scripts/confidence.py`; commit {kept['commit']})"])


TABLES = {
    "docs/speed.md": {
        "speed M": lambda: speed("M"),
        "speed S": lambda: speed("S"),
        "speed growth": speed_growth,
        "fewer steps": fewer_steps.curve,
        "steps tried": fewer_steps.tried,
        "fast": fewer_steps.chosen,
    },
    "docs/benchmarks.md": {"synthetic by occlusion": synthetic_by_occlusion},
    "docs/scaling.md": {
        "plans": plans,
        "limited": limited,
        "plan 480p": plan_480p,
        "long tracklets": long_tracklets,
        "long step": long_step,
        "bounds": bounds,
        "counts": counts,
    },
    "docs/chrono.md": {
        "chrono training": chrono.training_table,
        "chrono ablation": chrono.ablation_table,
        "chrono methods": lambda: chrono.methods_table("random ViT"),
        "sift methods": lambda: chrono.methods_table("dense SIFT"),
        "throughput": throughput,
    },
    "docs/ablations.md": {"intervals": intervals, "lora": lora, "confidence": confidence},
    "README.md": {
        **{name: lambda name=name: table(name) for name in COLUMNS},
        "costs": costs,
        "benchmark synthetic": synthetic_by_kind,
        "benchmark badja": lambda: benchmark("badja", COLUMNS["horsejump"], {}, "clip", "delta_seg"),
        "ablations synthetic": lambda: ablations("synthetic"),
        "ablations horsejump": lambda: ablations("horsejump"),
    },
}


def update_pages() -> None:
    """Put the tables between their markers."""
    for page, tables in TABLES.items():
        text = (ROOT / page).read_text()
        for name, make in tables.items():
            start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
            before, rest = text.split(start)
            text = f"{before}{start}\n{make()}\n{end}{rest.split(end)[1]}"
        (ROOT / page).write_text(text)


if __name__ == "__main__":
    for job in sys.argv[1:]:
        {"benchmarks": measure_benchmarks}.get(job, lambda job=job: measure(job))()
    update_pages()
