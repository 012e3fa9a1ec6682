"""Optical flow by torchvision's RAFT (method §3), in half precision on a GPU; its weights."""

import math
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torchvision.models.optical_flow import RAFT, Raft_Large_Weights, Raft_Small_Weights, raft_large, raft_small

from dinotrack.errors import DinotrackError
from dinotrack.raft_flows import RaftFlows
from dinotrack.weights import fingerprint, read_weights

PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class Raft:
    """RAFT (Teed and Deng, ECCV 2020) by torchvision, as the paper's tracklets need it: raft_large, 24 updates (§3).

    Weights: those of the file `checkpoint` (torchvision's names), else with `pretrained` torchvision's default download,
    else random ones by `seed`.

    `precision` is that of the encoders and of the updates; "auto" is float16 on CUDA, else float32. Of the two half precisions
    float16 has the finer steps, which the motion that goes into each update needs: at 30 cells, or 240 pixels, one of 1/64 of a
    cell, where bfloat16 has 1/8. It is the one that RAFT's authors take. What it lacks is range, and the networks normalise.
    Correlations and positions are in float32 always. `batch` pairs of frames are done at once, each in both directions; it does
    not change what comes out. None is one on a CPU, where more are no faster, elsewhere as many as `pairs_at_once` finds room for.

    Raises:
        DinotrackError: when `updates` or `batch` is below 1, the precision is unknown, or the weights cannot be had or do not fit.
    """

    def __init__(
        self,
        checkpoint: str | None = None,
        pretrained: bool = True,
        updates: int = 24,
        small: bool = False,
        seed: int = 0,
        precision: str = "auto",
        batch: int | None = None,
    ) -> None:
        if updates < 1:
            raise DinotrackError(f"updates={updates}: RAFT needs at least 1")
        if batch is not None and batch < 1:
            raise DinotrackError(f"batch={batch}: at least 1 pair of frames is done at once; null chooses")
        if precision not in ("auto", *PRECISIONS):
            raise DinotrackError(f"precision {precision!r} is unknown; choose one of auto, {', '.join(PRECISIONS)}")
        if checkpoint is not None:
            self.network, weights = load_raft(small, checkpoint), fingerprint(checkpoint)
        elif pretrained:
            self.network, weights = download_raft(small)
        else:
            self.network, weights = random_raft(small, seed), f"random:{seed}"
        self.network.eval().requires_grad_(False)
        self.updates, self.asked_precision, self.batch = updates, precision, batch
        self.made_of: dict[str, Any] = {
            "kind": "raft",
            "checkpoint": checkpoint,
            "pretrained": pretrained,
            "updates": updates,
            "small": small,
            "seed": seed,
            "weights": weights,
        }

    @property
    def precision(self) -> str:
        """What "auto" is on the device that the network is on."""
        if self.asked_precision != "auto":
            return self.asked_precision
        return "float16" if next(self.network.parameters()).is_cuda else "float32"

    @property
    def settings(self) -> dict[str, Any]:
        """Plain values from which `build_flow` makes the same estimator again; full precision goes without saying."""
        return self.made_of | ({} if self.precision == "float32" else {"precision": self.precision})

    def __call__(self, source: UInt8[Tensor, "b 3 h w"], target: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b 2 h w"]:
        """Motion from `source` to `target`, all at once; the frames must be on RAFT's device."""
        numbers = torch.arange(len(source))
        return self.over(torch.cat([source, target]))(numbers, numbers + len(source))

    def over(self, frames: UInt8[Tensor, "t 3 h w"], memory: float = math.inf) -> "RaftFlows":
        """Motion between these frames, each of which is encoded once as long as all fit into `memory` bytes; on RAFT's device."""
        return RaftFlows(self.network, frames, self.updates, PRECISIONS[self.precision], self.batch, memory)

    def to(self, device: torch.device | str) -> "Raft":
        """Move to `device`, in place."""
        self.network.to(device)
        return self


def random_raft(small: bool, seed: int) -> RAFT:
    """RAFT with random weights; the global random state stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return raft_small() if small else raft_large()


def load_raft(small: bool, path: str) -> RAFT:
    """RAFT with the weights of a file.

    Raises:
        DinotrackError: when the file is unreadable or of another network.
    """
    network = random_raft(small, seed=0)
    try:
        network.load_state_dict(read_weights(path), strict=True)
    except RuntimeError as error:
        name = "raft_small" if small else "raft_large"
        raise DinotrackError(
            f"checkpoint {path} is not of torchvision's {name} ({' '.join(str(error).split())[:200]}); "
            "give torchvision's file, or set flow.small to what it holds"
        ) from error
    return network


def download_raft(small: bool) -> tuple[RAFT, str]:
    """RAFT with torchvision's default weights, from torch's cache or the network, and their name.

    Raises:
        DinotrackError: when they cannot be had.
    """
    weights = Raft_Small_Weights.DEFAULT if small else Raft_Large_Weights.DEFAULT
    build = raft_small if small else raft_large
    try:
        return build(weights=weights, progress=False), f"torchvision:{weights}"
    except (OSError, RuntimeError) as error:
        raise DinotrackError(
            f"no weights for RAFT ({type(error).__name__}: no network?); give torchvision's {weights.url.split('/')[-1]} "
            "by flow.checkpoint=FILE or in torch's cache (TORCH_HOME/hub/checkpoints), or take flow=dis"
        ) from error
