"""The papers' maths as pure functions, one per equation; their constants are the default arguments.

[P] is the DINO-Tracker paper, [C] its published code; section numbers are those of docs/method.md.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dinotrack.geometry import read_field
from dinotrack.structs import PIXELS


def unit(features: Float[Tensor, "*n c"]) -> Float[Tensor, "*n c"]:
    """Features divided by their Euclidean norm (zero stays zero)."""
    return F.normalize(features, dim=-1, eps=1e-8)


def similarity(source: Float[Tensor, "n c"], target: Float[Tensor, "m c"]) -> Float[Tensor, "n m"]:
    """Cosine similarity of every source feature with every target feature: the cost volume S of Eq. 2, unclamped."""
    return unit(source) @ unit(target).T


def best_buddies(similarities: Float[Tensor, "n m"]) -> tuple[Int[Tensor, " k"], Int[Tensor, " k"]]:
    """Mutual nearest neighbours, Eq. 3: numbers of the sources and of their targets; of equal ones the first.

    The highest value of a row or a column is found much faster than where it is, and buddies are rows and columns whose highest
    value is the same one: n + m values are matched in place of n·m searched.
    """
    target = shared_peaks(similarities, similarities.amax(1), similarities.amax(0))
    source = (target >= 0).nonzero().squeeze(1)
    target = target[source]
    first = torch.full((similarities.shape[1],), len(similarities), device=source.device)
    first = first.scatter_reduce(0, target, source, "amin")
    kept = first[target] == source
    return source[kept], target[kept]


def shared_peaks(
    similarities: Float[Tensor, "n m"], of_rows: Float[Tensor, " n"], of_columns: Float[Tensor, " m"], few: int = 8
) -> Int[Tensor, " n"]:
    """For each row the first column with which it shares its highest value, or -1.

    A row is compared with the columns of the same highest value: one, or by chance two. Where they are more than a `few`, as with
    black frames, all columns are compared at once.
    """
    values, columns = of_columns.sort(stable=True)
    begin, end = (torch.searchsorted(values, of_rows, right=right) for right in (False, True))
    most = int((end - begin).max())
    if most > few:
        shared = (similarities == of_rows[:, None]) & (similarities == of_columns)
        return torch.where(shared.any(1), shared.byte().argmax(1), -1)
    target = torch.full_like(begin, -1)
    for k in reversed(range(most)):
        column = columns[(begin + k).clamp(max=len(columns) - 1)]
        met = (begin + k < end) & (similarities.gather(1, column[:, None]).squeeze(1) == of_rows)
        target = torch.where(met, column, target)
    return target


def box_overlap(x: Float[Tensor, "*n"], y: Float[Tensor, "*n"], side: float) -> Float[Tensor, "*n"]:
    """Intersection over union of two axis-aligned squares of `side` whose centres are (x, y) apart."""
    intersection = (side - x.abs()).clamp(min=0) * (side - y.abs()).clamp(min=0)
    return intersection / (2 * side**2 - intersection)


def ambiguity(
    similarities: Float[Tensor, "n m"],
    xy: Float[Tensor, "m 2"],
    *,
    side: float = 60.0,
    overlap: float = 0.2,
    candidates: int = 400,
) -> Float[Tensor, " n"]:
    """r_ij = s_2 / s_1 of §3: the second highest peak over the highest, after non-maximum suppression [C].

    Of the `candidates` highest similarities the second peak is the highest whose box (`side` pixels, around `xy`) overlaps the
    first one's by an IoU of at most `overlap`; with none there is no ambiguity and r is 0. This equals greedy suppression
    but for ties with the last candidate. To be
    among the highest is to be exceeded by few, which is counted faster than they are sorted.
    """
    first, peak = similarities.max(1)
    x, y = xy.unbind(1)
    near = box_overlap(x - x[peak][:, None], y - y[peak][:, None], side) > overlap
    second = similarities.masked_fill(near, 0).amax(1)
    among = (similarities > second[:, None]).sum(1) < candidates
    return (torch.where(among, second, 0) / first.clamp(min=1e-8)).clamp(0, 1)


def cubed(cosine: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """2·s³ clamped at 0: the weight of refined best buddies (§3) and the second factor of `best_buddy_weight`."""
    return 2 * cosine.clamp(min=0) ** 3


def best_buddy_weight(
    ratio: Float[Tensor, " n"], cosine: Float[Tensor, " n"], *, a: float = 27.0, b: float = -5.7
) -> Float[Tensor, " n"]:
    """w = σ(a(1 - r) + b)·2·s³ of §3, with b added as [C] does ([P] prints a minus)."""
    return torch.sigmoid(a * (1 - ratio) + b) * cubed(cosine)


def contrastive_loss(
    cosines: Float[Tensor, "n m"], index: Int[Tensor, " n"], *, temperature: float = 0.1
) -> Float[Tensor, " n"]:
    """l_ij of §4: -log softmax(cos / τ) over all tokens of the other frame, at each source's target token `index`."""
    return F.cross_entropy(cosines / temperature, index, reduction="none")


def position_loss(
    predicted: Float[Tensor, "n 2"], xy: Float[Tensor, "n 2"], *, delta: float = 1 / 32
) -> Float[Tensor, "n 2"]:
    """Huber loss per coordinate, L_flow of §4 before its mean; positions in the units of `geometry.normalise`."""
    return F.huber_loss(predicted, xy, delta=delta, reduction="none")


def cycle_weight(error: Float[Tensor, " n"], *, base: float = 0.8) -> Float[Tensor, " n"]:
    """w = 0.8^e of §3 for a cycle error e in pixels at a long side of 854."""
    return base**error


def priors(
    refined: Float[Tensor, "*n c"], raw: Float[Tensor, "*n c"]
) -> tuple[Float[Tensor, "*n"], Float[Tensor, "*n"]]:
    """The halves of L_prior (§4): abs(1 - ‖Φ‖ / ‖Φ_DINO‖) and abs(1 - cos(Φ, Φ_DINO)). `raw` may be in half precision."""
    norm, raw_norm = refined.norm(dim=-1), torch.linalg.vector_norm(raw, dim=-1, dtype=refined.dtype).clamp(min=1e-8)
    cosine = (refined * raw).sum(-1) / (norm.clamp(min=1e-8) * raw_norm)
    return (1 - norm / raw_norm).abs(), (1 - cosine).abs()


def follow(flow: Float[Tensor, "2 h w"], xy: Float[Tensor, "n 2"]) -> Float[Tensor, "n 2"]:
    """Positions one flow field on: x + f(x), f read bilinearly between pixel centres (§3)."""
    return xy + read_field(flow, xy, PIXELS)


def forward_backward_error(
    forward: Float[Tensor, "2 h w"], backward: Float[Tensor, "2 h w"], xy: Float[Tensor, "n 2"]
) -> tuple[Float[Tensor, "n 2"], Float[Tensor, " n"]]:
    """Where the flow takes `xy`, and how far from `xy` the backward flow brings that back, in pixels (§3)."""
    landed = follow(forward, xy)
    return landed, (follow(backward, landed) - xy).norm(dim=-1)


def masked_median(values: Float[Tensor, "n k t"], mask: Bool[Tensor, "n k"]) -> Float[Tensor, "n t"]:
    """Lower median over the k that `mask` admits, as `torch.median` has it; infinite where it admits none."""
    ordered = values.masked_fill(~mask[:, :, None], torch.inf).sort(dim=1).values
    middle = (mask.sum(1) - 1).clamp(min=0) // 2
    return ordered.gather(1, middle[:, None, None].expand(-1, 1, values.shape[2])).squeeze(1)


def confidence(
    cosine: Float[Tensor, "n t"], disagreement: Float[Tensor, "n t"], *, scale: float = 35.0
) -> Float[Tensor, "n t"]:
    """How far a track is to be trusted, in [0, 1]: cos(φ^t, φ_q)⁺ / (1 + median_k d_k(t) / R), from §6's two quantities.

    Ours. Unlike §6's limit e_q, which the track sets itself, pixels order positions of different tracks; `scale` is R, beyond
    which the head does not look. It was chosen on synthetic videos (docs/ablations.md says how well it orders others).
    """
    return cosine.clamp(0, 1) / (1 + disagreement / scale)


def trajectory_agreement(
    distances: Float[Tensor, "n t t"], anchors: Bool[Tensor, "n t"]
) -> tuple[Float[Tensor, "n t"], Float[Tensor, " n"]]:
    """§6: median over anchors k of d_k(t), and the largest of these at an anchor, e_q; visible where the first is no larger.

    `distances[q, k, t]` is ‖Π(x̂^t, k) - x̂^k‖ of track q; only rows of anchors are read.
    """
    disagreement = masked_median(distances, anchors)
    return disagreement, disagreement.masked_fill(~anchors, -torch.inf).amax(1)
