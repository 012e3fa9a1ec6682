"""Count what optical flow and dense SIFT find in the real clips: the numbers by which `dinotrack plan` foresees memory.

python -m scripts.counts   # three clips at a long side of 854, some minutes; keeps docs/results/counts.json
"""

import json
from typing import Any

import torch
from scripts.memory import ROOT

from dinotrack.backbones import DenseSift, extract_features
from dinotrack.correspondences import dino_best_buddies
from dinotrack.data import load_video
from dinotrack.geometry import resize_frames, working_size
from dinotrack.optical_flow import Dis, flows_over
from dinotrack.tracklets import chain, consecutive_flows
from dinotrack.training.stages import commit, hardware

KEPT, DATA = ROOT / "docs" / "results" / "counts.json", ROOT.parent / "shared" / "data"
CLIPS = ("horsejump-high/video", "cat.mp4", "paragliding.mp4")
STRIDE = 14


def counts(name: str) -> dict[str, Any]:
    """Positions and tracklets for each pixel of each frame, best buddies for each token of each pair of frames."""
    video = load_video(DATA / name)
    frames = resize_frames(video.frames, working_size(video.size, 854, STRIDE))
    chains = chain(consecutive_flows(flows_over(frames, Dis())))
    with torch.no_grad():
        features = extract_features(DenseSift(stride=STRIDE), frames)
    pairs = dino_best_buddies(features, chains)
    count, _, height, width = frames.shape
    pixels, tokens = count * height * width, features.values[0, 0].numel()
    return {
        "clip": name,
        "frames": count,
        "size": [width, height],
        "positions": round(len(chains.xy) / pixels, 3),
        "tracklets": round(len(chains) / pixels, 4),
        "best_buddies": round(len(pairs) / (tokens * count * (count - 1) / 2), 4),
    }


if __name__ == "__main__":
    rows = []
    for name in CLIPS:
        rows.append(counts(name))
        print(rows[-1], flush=True)
    KEPT.write_text(json.dumps({"rows": rows, "commit": commit(), "hardware": hardware()}, indent=1) + "\n")
