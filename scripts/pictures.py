"""Make the pictures of docs/pictures.md from DAVIS horsejump-high: `python scripts/pictures.py [run folder]`.

Of `dinotrack picture` that page says the very commands: they are read from there, and only the size of their picture is ours.
The folder is that of a fit to that clip; where it holds none, one is made (experiment=cpu_small, two minutes on two cores).
"""

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from dinotrack.data.queries import read_queries
from dinotrack.data.video import load_masks
from dinotrack.evaluation import predict, truth_of_joints
from dinotrack.structs import Video
from dinotrack.tools.picture import FittedRun, buddies_picture, looks_of, parse
from dinotrack.visualization import (
    compare_tracks,
    draw_tracks,
    pca_frames,
    resized,
    similarity_picture,
    tile,
    titled,
)
from dinotrack.visualization.layout import resized_tracks
from dinotrack.visualization.side_by_side import frames_in_a_row

ROOT = Path(__file__).parents[1]
CLIP, IMAGES = ROOT / "../shared/data/horsejump-high", ROOT / "docs/images"
PAGE = ROOT / "docs/pictures.md"
RUNS = {"dino_tracker": ROOT / "runs/pictures/fitted", "flow_chain": ROOT / "runs/pictures/flow_chain"}
"""By their methods; scripts/screenshots.py shows them too."""
WIDE, MOST = 768, 200_000


def track(folder: Path, method: str) -> None:
    """A run on the clip, without weights."""
    clip = [f"video={CLIP / 'video'}", f"masks={CLIP / 'masks'}", "queries=grid:20", "queries_on_mask=true"]
    options = ["experiment=cpu_small", f"method={method}", *clip, "logger=none", "render=false"]
    subprocess.run([sys.executable, "-m", "dinotrack", "run", *options, f"hydra.run.dir={folder}"], check=True)


def keep(picture: UInt8[Tensor, "3 h w"], name: str) -> None:
    """Save a picture as PNG with a palette that also has its few bright marks, not only what most pixels are."""
    path = IMAGES / f"picture_{name}.png"
    image = Image.fromarray(picture.permute(1, 2, 0).numpy())
    palette, counts = [], ((176, Image.Quantize.MEDIANCUT), (80, Image.Quantize.MAXCOVERAGE))
    for count, method in counts:
        palette += (image.quantize(count, method).getpalette() or [])[: 3 * count]
    chosen = Image.new("P", (1, 1))
    chosen.putpalette(palette)
    image.quantize(palette=chosen, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size // 1000} kB")
    if path.stat().st_size > MOST:
        raise SystemExit(f"{path} is larger than {MOST} bytes; make WIDE smaller")


def overlays(run: FittedRun, video: Video) -> None:
    """Points with trails, coloured by their row and by their confidence."""
    tracks = run.tracker.track(read_queries("grid:20", video, masked=True))
    size = (WIDE // 2, round(WIDE / 2 * video.size[1] / video.size[0]))
    small, scaled = resized(video, size), resized_tracks(tracks, size)
    for colour in ("rainbow", "confidence"):
        drawn = draw_tracks(small, scaled, colour=colour, frames=[0, 15, 30, 45], min_radius=3)
        keep(frames_in_a_row(drawn, 2), colour)


def errors(run: FittedRun, video: Video) -> None:
    """BADJA's joints by raw features and by the fit, side by side, with lines to where they are."""
    truth = truth_of_joints(video, CLIP / "badja.json")
    first = truth.queries[:, 0] == truth.queries[:, 0].min()
    truth = truth[first]
    both = [predict(tracker, truth, video.size) for tracker in (run.raw_tracker, run.tracker)]
    frames = truth.frames[[1, 3]].tolist()
    titles = ["raw features", "fitted tracker"]
    drawn = compare_tracks(video, both, titles, truth=truth, frames=frames, trail=0, widest=WIDE)
    keep(frames_in_a_row(drawn, 1), "errors")


def asked(kind: str) -> argparse.Namespace:
    """The options of the page's command for a picture of this kind."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith(f"dinotrack picture {kind} ")]
    return parse(shlex.split(next(line for line in lines if ".png" in line))[2:])


def similarity(run: FittedRun, video: Video) -> None:
    options = asked("similarity")
    query = torch.tensor(options.query)
    drawn = similarity_picture(video, query, looks_of(run, query), options.frames, widest=WIDE)
    keep(frames_in_a_row(drawn, 1), "similarity")


def best_buddies(run: FittedRun, video: Video) -> None:
    keep(buddies_picture(run, asked("best-buddies"), WIDE), "best_buddies")


def components(run: FittedRun, video: Video) -> None:
    chosen, size = asked("pca").frames, (WIDE // 3, round(WIDE / 3 * video.size[1] / video.size[0]))
    panels = [titled(resized(video, size).frames[chosen], "video")]
    for name, features in (("raw features", run.raw), ("refined features", run.tracker.features)):
        panels.append(titled(pca_frames(features, size)[chosen], name))
    keep(frames_in_a_row(tile(panels), 1), "pca")


def main(folder: Path) -> None:
    if not CLIP.is_dir():
        raise SystemExit(f"{CLIP} is not there; put DAVIS horsejump-high in it")
    if not (folder / "tracker.ckpt").exists():
        track(folder, "dino_tracker")
    run = FittedRun.open(folder)
    masks = load_masks(CLIP / "masks", run.video)
    video = Video(run.video.frames, run.video.fps, masks, run.video.path)
    for make in (overlays, errors, similarity, best_buddies, components):
        make(run, video)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else RUNS["dino_tracker"]))
