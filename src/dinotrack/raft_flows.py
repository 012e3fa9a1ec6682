"""Motion between the frames of a video by the parts of torchvision's RAFT (method §3): each frame is encoded once."""

import math
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torchvision.models.optical_flow import RAFT

from dinotrack.errors import DinotrackError
from dinotrack.geometry import without_autocast
from dinotrack.recent import Recent


class RaftFlows:
    """Motion between the frames of a video by the parts of torchvision's RAFT.

    What the encoders make of a frame is kept from when it is first asked for: of raft_large 512 numbers for each 8×8 pixels, of
    raft_small 288, in the encoders' precision. That is 32 bytes a pixel at most, 16 in half precision, on the frames' device. Where
    `memory` bytes do not hold all, frames that were not asked for lately are encoded again, which does not change what comes out.
    """

    def __init__(
        self,
        network: RAFT,
        frames: UInt8[Tensor, "t 3 h w"],
        updates: int = 24,
        precision: torch.dtype = torch.float32,
        batch: int | None = None,
        memory: float = math.inf,
    ) -> None:
        self.network, self.frames, self.updates, self.precision = network, frames, updates, precision
        self.margins = margins(frames.shape[3], frames.shape[2])
        left, top, right, bottom = self.margins
        self.cells = (frames.shape[2] + top + bottom) // 8, (frames.shape[3] + left + right) // 8
        self.batch = batch or (pairs_at_once(*self.cells) if frames.is_cuda else 1)
        self.features, self.contexts = Recent[Tensor](memory / 2), Recent[Tensor](memory / 2)

    def __len__(self) -> int:
        return len(self.frames)

    @torch.no_grad()
    def __call__(self, source: Int[Tensor, " p"], target: Int[Tensor, " p"]) -> Float[Tensor, "p 2 h w"]:
        """Motion from frames `source` to frames `target`, all at once.

        Raises:
            DinotrackError: when the network leaves half precision's range.
        """
        (left, top, _, _), (height, width) = self.margins, self.frames.shape[2:]
        if not len(source):
            return torch.zeros(0, 2, height, width, device=self.frames.device)
        with without_autocast(self.frames.device.type):
            flow = self.refined(source.tolist(), target.tolist())
        if self.precision != torch.float32 and not flow.isfinite().all():
            name = str(self.precision).removeprefix("torch.")
            raise DinotrackError(f"RAFT leaves the range of {name}; take flow.precision=float32")
        return flow[..., top : top + height, left : left + width]

    def refined(self, source: list[int], target: list[int]) -> Float[Tensor, "p 2 h8 w8"]:
        """Motion between padded frames: from none, by `updates` looks at the correlations around where it leads."""
        update, correlations = self.network.update_block, self.network.corr_block
        encode = partial(self.encoded, self.network.feature_encoder)
        first, second = (torch.stack([self.features.get(i, encode) for i in which]) for which in (source, target))
        hidden, context = self.context(source)
        start = cell_numbers(*self.cells, self.frames.device)
        flow = torch.zeros(len(source), *start.shape, device=start.device)
        correlations.build_pyramid(first.float(), second.float())
        for _ in range(self.updates):
            seen = correlations.index_pyramid(start + flow)
            with self.in_precision():
                hidden, change = update(hidden, context, seen, flow)
            flow = flow + change
        correlations.corr_pyramid = []  # its memory is for others
        return self.upsampled(flow, hidden)

    def encoded(self, encoder: nn.Module, number: int) -> Float[Tensor, "channels rows columns"]:
        """What an encoder makes of a frame: of one at a time, so that the others do not matter."""
        with self.in_precision():
            return encoder(self.padded(number))[0]

    def context(
        self, numbers: list[int]
    ) -> tuple[Float[Tensor, "p hidden rows columns"], Float[Tensor, "p context rows columns"]]:
        """What each update starts from, and what it has beside it, of source frames."""
        encode = partial(self.encoded, self.network.context_encoder)
        maps = torch.stack([self.contexts.get(number, encode) for number in numbers])
        size = self.network.update_block.hidden_state_size
        return maps[:, :size].tanh(), maps[:, size:].relu()

    def upsampled(
        self, flow: Float[Tensor, "p 2 rows columns"], hidden: Float[Tensor, "p hidden rows columns"]
    ) -> Float[Tensor, "p 2 h8 w8"]:
        """Flow between cells as flow between pixels: interpolated, or with a mean of each 3×3 cells that the network weights."""
        if self.network.mask_predictor is None:
            return 8 * F.interpolate(flow, scale_factor=8, mode="bilinear", align_corners=True)
        with self.in_precision():
            weights = self.network.mask_predictor(hidden)
        weights = weights.float().unflatten(1, (1, 9, 64)).softmax(2)
        nearby = F.unfold(8 * flow, 3, padding=1).view(len(flow), 2, 9, 1, *flow.shape[2:])
        return F.pixel_shuffle((weights * nearby).sum(2).flatten(1, 2), 8)

    def padded(self, number: int) -> Float[Tensor, "1 3 h8 w8"]:
        """A frame as the network takes it: between -1 and 1, centred in sides that are multiples of 8."""
        left, top, right, bottom = self.margins
        frame = self.frames[number].float().unsqueeze(0) / 127.5 - 1
        return F.pad(frame, (left, right, top, bottom), mode="replicate")

    def in_precision(self) -> AbstractContextManager[Any]:
        device = self.frames.device.type
        return without_autocast(device) if self.precision == torch.float32 else torch.autocast(device, self.precision)


def pairs_at_once(rows: int, columns: int, memory: float = 4e9, most: int = 16) -> int:
    """Pairs of frames, each in both directions, whose correlations between all cells fill `memory` bytes.

    While they are made they take twice that. Both limits are estimates for a GPU, where nothing was measured.
    """
    pyramid = 1 + 1 / 4 + 1 / 16 + 1 / 64
    return max(1, min(most, int(memory / (2 * 4 * (rows * columns) ** 2 * pyramid))))


def cell_numbers(rows: int, columns: int, device: torch.device) -> Float[Tensor, "2 rows columns"]:
    """Column and row of each cell, as torchvision looks up correlations."""
    y, x = torch.meshgrid(torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij")
    return torch.stack([x, y]).float()


def margins(width: int, height: int, multiple: int = 8, smallest: int = 128) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) pixels that centre a frame in one that RAFT takes.

    Its encoder divides by 8; its correlation pyramid needs 16 cells a side.
    """
    extra = [max(smallest, -(-side // multiple) * multiple) - side for side in (width, height)]
    return extra[0] // 2, extra[1] // 2, extra[0] - extra[0] // 2, extra[1] - extra[1] // 2
