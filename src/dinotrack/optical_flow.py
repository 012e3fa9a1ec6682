"""Optical flow between frames (method §3): OpenCV's DIS, which needs no weights, and torchvision's RAFT."""

from typing import Any, Protocol, runtime_checkable

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor
from torchvision.models.optical_flow import RAFT, Raft_Large_Weights, Raft_Small_Weights, raft_large, raft_small

from dinotrack.errors import DinotrackError
from dinotrack.weights import fingerprint, read_weights


@runtime_checkable
class FlowEstimator(Protocol):
    """Two batches of frames in, the motion from the first to the second out."""

    settings: dict[str, Any]
    """Plain values from which `build_flow` makes the same estimator again; part of every cache key."""

    def __call__(self, source: UInt8[Tensor, "b 3 h w"], target: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b 2 h w"]:
        """Motion (x, y) in pixels: what is at the centre p of a pixel of `source` is at p + flow[p] in `target`."""
        ...

    def to(self, device: torch.device | str) -> "FlowEstimator": ...


DIS_PRESETS = {
    "ultrafast": cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST,
    "fast": cv2.DISOPTICAL_FLOW_PRESET_FAST,
    "medium": cv2.DISOPTICAL_FLOW_PRESET_MEDIUM,
}


class Dis:
    """Dense inverse search on grey frames (Kroeger et al., ECCV 2016; OpenCV), on the CPU whatever the device.

    The default solves down to full resolution (`finest_scale` 0), which OpenCV's presets do not: on textured frames of 192×144
    it brings the mean error of smooth motion of 6 px from 0.11 to 0.07 px, for 20 ms a pair in place of 7.
    `refinement_iterations` are those of the variational refinement at each scale; more than 5 gain nothing.

    Raises:
        DinotrackError: when the preset is unknown or a number is negative.
    """

    def __init__(
        self,
        preset: str = "medium",
        finest_scale: int = 0,
        refinement_iterations: int = 5,
        checkpoint: str | None = None,
        pretrained: bool = False,
    ) -> None:
        if checkpoint or pretrained:
            raise DinotrackError(f"{checkpoint=}, {pretrained=}: DIS has no weights; choose flow=raft for these")
        if preset not in DIS_PRESETS:
            raise DinotrackError(f"DIS preset {preset!r} is unknown; choose one of {', '.join(DIS_PRESETS)}")
        if finest_scale < 0 or refinement_iterations < 0:
            raise DinotrackError(f"{finest_scale=}, {refinement_iterations=}: DIS needs both at least 0")
        self.settings: dict[str, Any] = {
            "kind": "dis",
            "preset": preset,
            "finest_scale": finest_scale,
            "refinement_iterations": refinement_iterations,
        }
        # OpenCV fails, or dies of a segmentation fault, where a side has less than one 8-pixel patch at the finest scale.
        self.smallest = 16 << finest_scale

    def __call__(self, source: UInt8[Tensor, "b 3 h w"], target: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b 2 h w"]:
        """Motion from `source` to `target`, on the device of `source`; small frames are padded by their border."""
        estimator = cv2.DISOpticalFlow.create(DIS_PRESETS[self.settings["preset"]])
        estimator.setFinestScale(self.settings["finest_scale"])
        estimator.setVariationalRefinementIterations(self.settings["refinement_iterations"])
        flows = [self._pair(estimator, a, b) for a, b in zip(source, target, strict=True)]
        empty = torch.zeros(0, 2, *source.shape[-2:])
        return torch.cat([empty, *flows]).to(source.device)

    def _pair(
        self, estimator: cv2.DISOpticalFlow, source: UInt8[Tensor, "3 h w"], target: UInt8[Tensor, "3 h w"]
    ) -> Float[Tensor, "1 2 h w"]:
        height, width = source.shape[-2:]
        shortfall = (0, max(0, self.smallest - height)), (0, max(0, self.smallest - width))
        first, second = (np.pad(grey(frame), shortfall, mode="edge") for frame in (source, target))
        flow = estimator.calc(first, second, None)  # pyright: ignore[reportCallIssue, reportArgumentType] (stubs lack None)
        return torch.from_numpy(flow[:height, :width].copy()).permute(2, 0, 1).unsqueeze(0)

    def to(self, device: torch.device | str) -> "Dis":
        """DIS stays on the CPU."""
        return self


def grey(frame: UInt8[Tensor, "3 h w"]) -> np.ndarray:
    """A grey (H, W) image in 8 bit."""
    return cv2.cvtColor(np.ascontiguousarray(frame.permute(1, 2, 0).numpy(force=True)), cv2.COLOR_RGB2GRAY)


class Raft:
    """RAFT (Teed and Deng, ECCV 2020) by torchvision, as the paper's tracklets need it: raft_large, 24 updates (§3).

    Weights: those of the file `checkpoint` (torchvision's names), else with `pretrained` torchvision's default download,
    else random ones by `seed`.

    Raises:
        DinotrackError: when `updates` is below 1, or the weights cannot be had or do not fit.
    """

    def __init__(
        self,
        checkpoint: str | None = None,
        pretrained: bool = True,
        updates: int = 24,
        small: bool = False,
        seed: int = 0,
    ) -> None:
        if updates < 1:
            raise DinotrackError(f"updates={updates}: RAFT needs at least 1")
        if checkpoint is not None:
            self.network, weights = load_raft(small, checkpoint), fingerprint(checkpoint)
        elif pretrained:
            self.network, weights = download_raft(small)
        else:
            self.network, weights = random_raft(small, seed), f"random:{seed}"
        self.network.eval().requires_grad_(False)
        self.settings: dict[str, Any] = {
            "kind": "raft",
            "checkpoint": checkpoint,
            "pretrained": pretrained,
            "updates": updates,
            "small": small,
            "seed": seed,
            "weights": weights,
        }

    @torch.no_grad()
    def __call__(self, source: UInt8[Tensor, "b 3 h w"], target: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b 2 h w"]:
        """Motion from `source` to `target`; the frames must be on RAFT's device."""
        left, top, right, bottom = margins(source.shape[3], source.shape[2])
        first, second = (
            F.pad(frames.float() / 127.5 - 1, (left, right, top, bottom), mode="replicate")
            for frames in (source, target)
        )
        flow = self.network(first, second, num_flow_updates=self.settings["updates"])[-1]
        return flow[..., top : flow.shape[-2] - bottom, left : flow.shape[-1] - right]

    def to(self, device: torch.device | str) -> "Raft":
        """Move to `device`, in place."""
        self.network.to(device)
        return self


def margins(width: int, height: int, multiple: int = 8, smallest: int = 128) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) pixels that centre a frame in one that RAFT takes.

    Its encoder divides by 8; its correlation pyramid needs 16 cells a side.
    """
    extra = [max(smallest, -(-side // multiple) * multiple) - side for side in (width, height)]
    return extra[0] // 2, extra[1] // 2, extra[0] - extra[0] // 2, extra[1] - extra[1] // 2


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


def build_flow(settings: dict[str, Any]) -> FlowEstimator:
    """The estimator that has these `settings`.

    Raises:
        DinotrackError: when the kind is unknown, or the weights are no longer those that `settings` name.
    """
    options = {name: value for name, value in settings.items() if name not in ("kind", "weights")}
    kinds: dict[str, Any] = {"dis": Dis, "raft": Raft}
    if settings.get("kind") not in kinds:
        raise DinotrackError(f"flow kind {settings.get('kind')!r} is unknown; choose one of {', '.join(kinds)}")
    flow: FlowEstimator = kinds[settings["kind"]](**options)
    found, expected = flow.settings.get("weights"), settings.get("weights", flow.settings.get("weights"))
    if found != expected:
        raise DinotrackError(f"the flow's weights are {found}, expected {expected}; give the file they came from")
    return flow
