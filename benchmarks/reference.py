"""Each stage the straightforward way, from the formulas of docs/method.md: what a first version would be, and the tests' oracle.

Whole maps where windows would do, every frame where one would do, masks over dense arrays, loops over frames, pairs and queries.
Nothing here is shared with the library but the parameters of its networks.
"""

import math

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models.optical_flow import RAFT

from dinotrack.layers import BlurPool
from dinotrack.networks import DeltaDino, TrackerHead
from dinotrack.optical_flow import FlowEstimator
from dinotrack.structs import FeatureMap, Pairs
from dinotrack.training.batch import Batch


def token_centres(height: int, width: int, features: FeatureMap) -> Tensor:
    """Raster (x, y) of each token, row by row."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([x, y], -1).view(-1, 2).to(features.values.device) * features.stride + features.offset


def read_flow(flow: Tensor, xy: Tensor) -> Tensor:
    """A flow field (2, H, W) at raster positions (N, 2), bilinear, clamped to the outermost pixel centres."""
    height, width = flow.shape[1:]
    points = (xy - 0.5) / torch.tensor([width - 1, height - 1], device=xy.device) * 2 - 1
    return F.grid_sample(flow[None], points[None, None], "bilinear", "border", align_corners=True)[0, :, 0].T


def raft(network: RAFT, frames: Tensor, source: int, target: int, updates: int = 24) -> Tensor:
    """(2, H, W) from one frame to another by torchvision's whole network: both are encoded, every update's flow is upsampled."""
    height, width = frames.shape[2:]
    extra = [max(128, math.ceil(side / 8) * 8) - side for side in (height, width)]
    top, left = extra[0] // 2, extra[1] // 2
    sides = (left, extra[1] - left, top, extra[0] - top)
    padded = F.pad(frames[[source, target]].float() / 127.5 - 1, sides, mode="replicate")
    flow = network(padded[:1], padded[1:], num_flow_updates=updates)[-1][0]
    return flow[:, top : top + height, left : left + width]


def on_frame(xy: Tensor, width: int, height: int) -> Tensor:
    return (xy[:, 0] >= 0) & (xy[:, 1] >= 0) & (xy[:, 0] < width) & (xy[:, 1] < height)


def tracklets(frames: Tensor, flow: FlowEstimator, gamma: float, gamma_long: float) -> Tensor:
    """(N, T, 2) positions, NaN where a tracklet is not: chained from every start frame, checked against every direct flow (§3)."""
    count, _, height, width = frames.shape
    device = frames.device
    y, x = torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")
    pixels = torch.stack([x, y], -1).view(-1, 2) + 0.5
    between = {
        (i, j): flow(frames[i : i + 1], frames[j : j + 1])[0] for i in range(count) for j in range(count) if i != j
    }
    dense: list[Tensor] = []
    taken = torch.zeros(count, height, width, dtype=torch.bool, device=device)
    for start in range(count - 1):
        begin = ~taken[start]
        if start:
            back, forth = between[start, start - 1], between[start - 1, start]
            came = pixels + read_flow(back, pixels)
            error = (came + read_flow(forth, came) - pixels).norm(dim=1)
            landed = pixels + read_flow(forth, pixels)
            landed = landed[on_frame(landed, width, height)]
            reached = torch.zeros(height, width, dtype=torch.bool, device=device)
            cell = (landed - 0.5).round().long()
            reached[cell[:, 1].clamp(0, height - 1), cell[:, 0].clamp(0, width - 1)] = True
            begin = begin | (error >= gamma).view(height, width) | ~reached
        points = pixels[begin.flatten()]
        paths = torch.full((len(points), count, 2), math.nan, device=device)
        paths[:, start] = points
        alive = torch.ones(len(points), dtype=torch.bool, device=device)
        for t in range(start, count - 1):
            here = paths[:, t]
            there = here + read_flow(between[t, t + 1], here.nan_to_num())
            error = (there + read_flow(between[t + 1, t], there.nan_to_num()) - here).norm(dim=1)
            alive = alive & (error < gamma) & on_frame(there, width, height)
            paths[:, t + 1] = torch.where(alive[:, None], there, math.nan)
        for t in range(start, count):
            cell = (paths[:, t][~paths[:, t, 0].isnan()] - 0.5).round().long()
            taken[t, cell[:, 1].clamp(0, height - 1), cell[:, 0].clamp(0, width - 1)] = True
        ended = torch.zeros(len(points), dtype=torch.bool, device=device)
        for t in range(start + 2, count):
            direct = points + read_flow(between[start, t], points)
            error = (direct + read_flow(between[t, start], direct) - points).norm(dim=1)
            apart = (direct - paths[:, t]).norm(dim=1) >= gamma_long
            ended = ended | ((error < gamma) & on_frame(direct, width, height) & apart)
            paths[ended, t] = math.nan
        dense.append(paths[~paths[:, start + 1, 0].isnan()])
    return torch.cat(dense)


def second_peak(similarities: Tensor, xy: Tensor, side: float) -> Tensor:
    """r = s_2 / s_1 of each row by greedy non-maximum suppression of boxes of the 400 best (§3)."""
    ratios = []
    for row in similarities:
        values, index = row.topk(min(400, len(row)))
        boxes = torch.cat([xy[index] - side / 2, xy[index] + side / 2], 1)
        kept = torchvision.ops.nms(boxes, values, 0.2)
        second = values[kept[1]] if len(kept) > 1 else values.new_zeros(())
        ratios.append((second / values[0].clamp(min=1e-8)).clamp(0, 1))
    return torch.stack(ratios) if ratios else similarities.new_zeros(0)


def best_buddies(features: FeatureMap, chains: Tensor, side: float) -> list[Pairs]:
    """Best buddies of every ordered pair of frames, filtered by the nearest chain by brute force, with their weights (§3).

    `chains` (N, T, 2) are the tracklets before the drift check, NaN where they are not.
    """
    count, _, height, width = features.values.shape
    tokens, found = token_centres(height, width, features), []
    maps = F.normalize(features.values.flatten(2).transpose(1, 2).float(), dim=-1)
    living = [torch.nonzero(~chains[:, frame, 0].isnan()).squeeze(1) for frame in range(count)]
    places = [chains[living[frame], frame] for frame in range(count)]
    for i in range(count):
        for j in range(count):
            if i == j:
                continue
            similar = maps[i] @ maps[j].T
            forth, back = similar.argmax(1), similar.argmax(0)
            source = torch.nonzero(back[forth] == torch.arange(len(forth), device=forth.device)).squeeze(1)
            target = forth[source]
            keep = torch.ones(len(source), dtype=torch.bool, device=source.device)
            for frame, other, chosen in ((i, j, source), (j, i, target)):
                nearest = living[frame][torch.cdist(tokens[chosen], places[frame]).argmin(1)]
                keep &= chains[nearest, other, 0].isnan()
            source, target = source[keep], target[keep]
            ratio = torch.maximum(
                second_peak(similar[source], tokens, side), second_peak(similar.T[target], tokens, side)
            )
            s = similar[source, target]
            weight = torch.sigmoid(27 * (1 - ratio) - 5.7) * 2 * s.clamp(min=0) ** 3
            first, second = torch.full_like(source, i), torch.full_like(target, j)
            found.append(Pairs(first, second, tokens[source], tokens[target], weight))
    return found


def residual_maps(delta: DeltaDino, images: Tensor) -> Tensor:
    """Delta-DINO's layers (§1) by PyTorch's own convolutions and norms, channels first."""
    maps = images
    for layer in delta.layers:
        if isinstance(layer, nn.Conv2d):
            reach = 2 * layer.dilation[0]
            padded = F.pad(maps, (reach, reach, reach, reach), mode="reflect")
            maps = F.conv2d(padded, layer.weight, layer.bias, dilation=layer.dilation)
        elif isinstance(layer, nn.BatchNorm2d):
            known = (None, None) if layer.training else (layer.running_mean, layer.running_var)
            maps = F.batch_norm(maps, *known, layer.weight, layer.bias, layer.training, eps=layer.eps)
        elif isinstance(layer, BlurPool):
            maps = F.conv2d(F.pad(maps, (1, 2, 1, 2), mode="reflect"), layer.filt, stride=2, groups=maps.shape[1])
        else:
            maps = layer(maps.clone())
    return maps


def delta_dino(delta: DeltaDino, images: Tensor, features: FeatureMap) -> Tensor:
    """Φ of frames (B, 3, H, W), one after the other, in float32 (Eq. 1)."""
    height, width = features.values.shape[2:]
    centres = (token_centres(height, width, features) - delta.offset) / delta.stride
    refined = []
    for image, raw in zip(images, features.values, strict=True):
        residual = residual_maps(delta, image[None].float() / 255)
        extent = torch.tensor([residual.shape[3] - 1, residual.shape[2] - 1], device=centres.device)
        points = (2 * centres / extent - 1).view(1, height, width, 2)
        refined.append(raw.float() + F.grid_sample(residual, points, "bilinear", "border", align_corners=True)[0])
    return torch.stack(refined)


def sampled(maps: Tensor, frame: Tensor, xy: Tensor, features: FeatureMap) -> Tensor:
    """Features (N, C) of maps (T, C, h, w) at positions, frame by frame."""
    height, width = maps.shape[2:]
    points = (xy - features.offset) / features.stride / torch.tensor([width - 1, height - 1], device=xy.device) * 2 - 1
    found = torch.zeros(len(xy), maps.shape[1], device=xy.device)
    for t in frame.unique().tolist():
        rows = (frame == t).nonzero().squeeze(1)
        here = F.grid_sample(
            maps[t : t + 1].float(), points[rows].view(1, 1, -1, 2), "bilinear", "border", align_corners=True
        )
        found = found.index_copy(0, rows, here[0, :, 0].T)
    return found


def positions(head: TrackerHead, maps: Tensor, features: FeatureMap, scale: float) -> Tensor:
    """Π of similarity maps (N, h, w): the refiner on whole maps, a softmax over all, a mean within R of the highest S (Eq. 2)."""
    height, width = maps.shape[1:]
    maps, xy = maps.clamp(min=0), token_centres(height, width, features)
    first, second = head.cnn_refiner[0], head.cnn_refiner[2]
    kernels = []
    for layer in (first, second):
        total = layer.weight.sum((2, 3), keepdim=True)
        small = total.abs() < 1e-8
        kernels.append(layer.weight / torch.where(small, torch.where(total < 0, -1e-8, 1e-8), total))
    hidden = F.relu(F.conv2d(maps[:, None], kernels[0], first.bias, padding=1))
    logits = F.conv2d(hidden, kernels[1], second.bias, padding=1).flatten(1)
    probability = logits.softmax(1)
    peak = xy[maps.flatten(1).argmax(1)]
    within = (xy[None] - peak[:, None]).norm(dim=-1) <= head.radius * scale
    mass = probability * within
    return (mass[:, :, None] * xy).sum(1) / mass.sum(1, keepdim=True)


def located(
    head: TrackerHead, wanted: Tensor, maps: Tensor, frame: Tensor, features: FeatureMap, scale: float
) -> Tensor:
    """Π of wanted features (N, C) in frames `frame`: similarities with all frames first, then those with the one asked for."""
    unit = F.normalize(maps.float(), dim=1)
    similar = torch.einsum("nc,tchw->nthw", F.normalize(wanted.float(), dim=1), unit)
    return positions(head, similar[torch.arange(len(wanted)), frame], features, scale)


def step_loss(batch: Batch, delta: DeltaDino, head: TrackerHead, late: bool, scale: float) -> Tensor:
    """Eq. 5 of one minibatch with the published weights; BatchNorm in training mode sees all frames at once (§4)."""
    features = FeatureMap(batch.features, batch.grid.stride, batch.grid.offset, batch.size)
    height, width = batch.features.shape[2:]
    centres = (token_centres(height, width, features) - delta.offset) / delta.stride
    residual = residual_maps(delta, batch.images.float() / 255)
    extent = torch.tensor([residual.shape[3] - 1, residual.shape[2] - 1], device=centres.device)
    points = (2 * centres / extent - 1).view(1, height, width, 2).expand(len(residual), -1, -1, -1)
    raw = batch.features.float()
    refined = raw + F.grid_sample(residual, points, "bilinear", "border", align_corners=True)

    def normalised(xy: Tensor) -> Tensor:
        return 2 * xy / (torch.tensor(batch.size, device=xy.device) - 1) - 1

    def distance(pairs: Pairs) -> Tensor:
        wanted = sampled(refined, pairs.source, pairs.source_xy, features)
        found = located(head, wanted, refined, pairs.target, features, scale)
        return F.huber_loss(normalised(found), normalised(pairs.target_xy), delta=1 / 32, reduction="none")

    def contrast(pairs: Pairs, live: bool) -> Tensor:
        def token(xy: Tensor) -> Tensor:
            cell = ((xy - features.offset) / features.stride).round().long()
            return cell[:, 1] * width + cell[:, 0]

        rows, total = F.normalize(refined.flatten(2).transpose(1, 2), dim=-1), raw.new_zeros(())
        for i, j in {(int(i), int(j)) for i, j in zip(pairs.source, pairs.target, strict=True)}:
            here = (pairs.source == i) & (pairs.target == j)
            a, b = token(pairs.source_xy[here]), token(pairs.target_xy[here])
            similar = rows[i] @ rows[j].T
            forth, back = (similar / 0.1).log_softmax(1), (similar.T / 0.1).log_softmax(1)
            loss = -(forth[a, b] + back[b, a]) / 2
            weight = 2 * similar[a, b].detach().clamp(min=0) ** 3 if live else pairs.weight[here]
            total = total + (weight * loss).sum()
        return total

    norms = (1 - refined.norm(dim=1) / raw.norm(dim=1).clamp(min=1e-8)).abs()
    angles = (1 - F.cosine_similarity(refined, raw, dim=1)).abs()
    loss = distance(batch.flow).mean() + 25e-5 * contrast(batch.best_buddies, live=False) / 700
    loss = loss + 1e-4 * (norms + angles).mean()
    if late:
        loss = loss + 5e-5 * contrast(batch.refined, live=True) / 900
        both = (distance(batch.cycle) + distance(batch.cycle.flip())) / 2
        loss = loss + 0.5 * (batch.cycle.weight[:, None] * both).mean()
    return loss


def tracks(features: FeatureMap, head: TrackerHead, queries: Tensor, scale: float) -> Tensor:
    """(N, T, 2) positions of (t, x, y) queries, query by query; the query's own frame returns the query (Eq. 2)."""
    count, found = len(features), []
    for query in queries:
        frame = query[:1].long()
        wanted = sampled(features.values, frame, query[None, 1:], features)
        path = located(head, wanted.expand(count, -1), features.values, torch.arange(count), features, scale)
        path[frame] = query[1:]
        found.append(path)
    return torch.stack(found)


def visible(features: FeatureMap, head: TrackerHead, queries: Tensor, paths: Tensor, scale: float) -> Tensor:
    """(N, T) visibility of tracks by §6, query by query and anchor by anchor."""
    count, every = len(features), torch.arange(len(features))
    answers = []
    for query, path in zip(queries, paths, strict=True):
        own = int(query[0])
        along = sampled(features.values, every, path, features)
        cosine = F.cosine_similarity(along, along[own : own + 1])
        anchors = (cosine >= 0.7).nonzero().flatten().tolist()
        distances = [
            (located(head, along, features.values, torch.full((count,), k), features, scale) - path[k]).norm(dim=1)
            for k in anchors
        ]
        agreement = torch.stack(distances).median(0).values
        answer = (agreement <= agreement[anchors].max()) & (cosine >= 0.6)
        answer[own] = True
        answers.append(answer)
    return torch.stack(answers)
