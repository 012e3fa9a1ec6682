"""Measure one training step of LoRA against one of Delta-DINO on the same random ViT; rows go to docs/results/lora.json.

python scripts/measure_lora.py   # about three minutes on one thread

[P] says that LoRA costs six times as much a step, at 854x476 and ViT-L. Attention grows with the square of the tokens, so small
frames show less; hence the operations of a step are counted too, and at the paper's size they are only counted.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from results import commit
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dinotrack.backbones import VitBackbone
from dinotrack.lora import LoraVit
from dinotrack.networks import DeltaDino

RESULT = Path(__file__).resolve().parents[1] / "docs" / "results" / "lora.json"
SMALL, LARGE = "vit_small_patch14_dinov2.lvd142m", "vit_large_patch14_dinov2.lvd142m"
BACKBONES = {SMALL: 12, LARGE: 16}
MEASURED = [(SMALL, (140, 98)), (LARGE, (140, 98)), (LARGE, (280, 196))]
PUBLISHED = (854, 476)
FRAMES, PAIRS, TEMPERATURE, STRIDE = 4, 256, 0.1, 7


def contrast(features: Tensor, tokens: Tensor) -> Tensor:
    """Mean of -log softmax of cos / τ between tokens of frames 0, 1 and all tokens of frames 2, 3: a best-buddy loss's cost."""
    source, target = nn.functional.normalize(features.flatten(2), dim=1).chunk(2)
    cosines = torch.einsum("bcn,bcm->bnm", source[:, :, tokens], target)
    return -(cosines / TEMPERATURE).log_softmax(2)[:, torch.arange(len(tokens), device=tokens.device), tokens].mean()


def one_step(network: DeltaDino | LoraVit, backbone: VitBackbone, raw: Tensor, images: Tensor) -> Callable[[], None]:
    """Forward of the frames, loss, backward and Adam, as a function to call again and again."""
    optimizer = torch.optim.Adam(network.train().parameters(), lr=0.01, foreach=False)
    tokens = torch.randperm(raw.shape[2] * raw.shape[3])[:PAIRS].to(raw.device)
    numbers = torch.arange(FRAMES)

    def step() -> None:
        optimizer.zero_grad()
        contrast(network.refine(raw, images, numbers, backbone.grid), tokens).backward()
        optimizer.step()

    return step


def seconds(step: Callable[[], None], repeats: int) -> float:
    """Median time of a step after one that warms up."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return median(times[1:])


def operations(network: DeltaDino | LoraVit, backbone: VitBackbone, size: tuple[int, int]) -> int:
    """Floating point operations of a step's matrix products and convolutions at `size`, counted without doing them."""
    rows, columns = ((side - backbone.patch) // STRIDE + 1 for side in (size[1], size[0]))
    network = network.to("meta")
    if isinstance(network, LoraVit):
        count = backbone.vit.num_prefix_tokens + rows * columns
        network.tokens = torch.zeros(FRAMES, count, backbone.channels, dtype=torch.half, device="meta")
        network.shape = (rows, columns)
    raw = torch.zeros(FRAMES, backbone.channels, rows, columns, device="meta")
    images = torch.zeros(FRAMES, 3, size[1], size[0], dtype=torch.uint8, device="meta")
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        one_step(network, backbone, raw, images)()
    return counter.get_total_flops()


def networks(backbone: VitBackbone) -> dict[str, DeltaDino | LoraVit]:
    return {"delta_dino": DeltaDino(backbone.channels), "lora": LoraVit(backbone)}


def count(backbone: VitBackbone, size: tuple[int, int]) -> dict[str, Any]:
    """The row's part that needs no clock."""
    counts = {name: operations(network, backbone, size) for name, network in networks(backbone).items()}
    ratio = round(counts["lora"] / counts["delta_dino"], 2)
    return {
        "model": backbone.settings["model"],
        "layer": backbone.settings["layer"],
        "size": size,
        "gflop": {name: round(value / 1e9, 1) for name, value in counts.items()},
        "gflop_ratio": ratio,
    }


def measure(backbone: VitBackbone, size: tuple[int, int], repeats: int = 5) -> dict[str, Any]:
    """Seconds of a step of each network and their ratio, LoRA's to Delta-DINO's."""
    frames = torch.randint(0, 256, (FRAMES, 3, size[1], size[0]), dtype=torch.uint8)
    raw = backbone(frames.float() / 255)
    times = {}
    for name, network in networks(backbone).items():
        network.prepare(frames)
        times[name] = seconds(one_step(network, backbone, raw, frames), repeats)
    ratio = round(times["lora"] / times["delta_dino"], 2)
    rounded = {name: round(value, 4) for name, value in times.items()}
    return {**count(backbone, size), "seconds_per_step": rounded, "ratio": ratio, "tokens": tuple(raw.shape[2:])}


def main() -> None:
    torch.manual_seed(0)
    rows = []
    for model, layer in BACKBONES.items():
        backbone = VitBackbone(model, layer, stride=STRIDE, pretrained=False)
        for size in [size for name, size in MEASURED if name == model]:
            rows.append(measure(backbone, size))
            print(json.dumps(rows[-1]))
    counted = count(backbone, PUBLISHED)
    print(json.dumps(counted))
    kept = {
        "command": ["python", "scripts/measure_lora.py"],
        "commit": commit(),
        "frames": FRAMES,
        "stride": STRIDE,
        "lora": LoraVit(backbone).settings,
        "measured": rows,
        "counted": counted,
        "published_ratio": 6,
        "torch": torch.__version__,
        "device": "cpu",
        "threads": torch.get_num_threads(),
    }
    RESULT.write_text(json.dumps(kept, indent=2) + "\n")


if __name__ == "__main__":
    main()
