"""RAFT on the frames of a video: each encoded once, in batches and in half precision, against torchvision's network as a whole."""

import gc
import itertools
import weakref
from collections import Counter
from typing import Any

import pytest
import torch
from benchmarks import reference
from benchmarks.inputs import Size, numbered_frames
from torch import Tensor, nn

from dinotrack.errors import DinotrackError
from dinotrack.optical_flow import Dis, Raft, VideoFlowEstimator, build_flow, flows_over
from dinotrack.raft_flows import RaftFlows, pairs_at_once
from dinotrack.tracklets import build_tracklets

FRAMES = numbered_frames(Size(frames=4, height=119, width=131))


def small_raft(**options: Any) -> Raft:
    return Raft(**{"small": True, "pretrained": False, "updates": 2, **options})


def numbers(*pairs: tuple[int, int]) -> tuple[Tensor, Tensor]:
    source, target = torch.tensor(pairs, dtype=torch.long).view(-1, 2).T
    return source, target


@pytest.mark.parametrize("small", [False, True], ids=["large", "small"])
def test_flow_is_that_of_torchvisions_network(small: bool) -> None:
    raft, pairs = Raft(small=small, pretrained=False, updates=24 if small else 4), [(0, 1), (2, 1)]
    found = raft.over(FRAMES)(*numbers(*pairs))
    with torch.no_grad():
        plain = torch.stack([reference.raft(raft.network, FRAMES, i, j, raft.updates) for i, j in pairs])
    assert plain.shape == (2, 2, 119, 131) and plain.abs().max() > 1 and (plain[0] - plain[1]).abs().max() > 0.1
    assert torch.allclose(found, plain, rtol=0, atol=1e-4)
    assert not found.requires_grad


def test_pairs_in_a_batch_are_those_one_at_a_time() -> None:
    raft, pairs = small_raft(), list(itertools.permutations((0, 1, 3), 2))
    flows = raft.over(FRAMES)
    together = flows(*numbers(*pairs))
    for (i, j), flow in zip(pairs, together, strict=True):
        assert torch.allclose(raft.over(FRAMES)(*numbers((i, j)))[0], flow, rtol=0, atol=1e-4)
        assert torch.allclose(raft(FRAMES[i : i + 1], FRAMES[j : j + 1])[0], flow, rtol=0, atol=1e-4)
    assert flows(*numbers()).shape == raft(FRAMES[:0], FRAMES[:0]).shape == (0, 2, 119, 131)


def test_correlations_do_not_stay_in_memory() -> None:
    raft = small_raft()
    raft(FRAMES[:1], FRAMES[1:2])
    assert raft.network.corr_block.corr_pyramid == []


def counted(raft: Raft) -> Counter[str]:
    """Frames that each encoder has seen, from now on."""
    seen: Counter[str] = Counter()
    for name in ("feature_encoder", "context_encoder"):

        def count(_: nn.Module, given: tuple[Tensor], name: str = name) -> None:
            seen[name] += len(given[0])

        getattr(raft.network, name).register_forward_pre_hook(count)
    return seen


def test_tracklets_have_each_frame_encoded_once() -> None:
    """Of flow between consecutive frames and of the drift check together, which has the pairs that are farther apart."""
    raft = small_raft(updates=1, batch=2)
    seen, pairs = counted(raft), Counter[str]()
    raft.network.update_block.register_forward_pre_hook(lambda _, given: pairs.update(pairs=len(given[0])))
    tracklets = build_tracklets(FRAMES, raft, gamma=1e4, gamma_long=1e5)
    assert int(tracklets.length.max()) == 4
    assert seen == {"feature_encoder": 4, "context_encoder": 4}
    assert pairs["pairs"] == 4 * 3


def test_only_sources_have_a_context() -> None:
    raft = small_raft(updates=1)
    seen = counted(raft)
    raft(FRAMES[:1], FRAMES[1:2])
    assert seen == {"feature_encoder": 2, "context_encoder": 1}


def test_batches_are_as_large_as_memory_admits() -> None:
    volume = 4 * (60 * 107) ** 2 * (1 + 1 / 4 + 1 / 16 + 1 / 64)  # of 480 x 856 pixels in one direction
    assert pairs_at_once(60, 107, memory=2 * volume * 3.5) == 3
    assert pairs_at_once(60, 107, memory=1.0) == 1
    assert pairs_at_once(16, 16) == 16
    assert small_raft().over(FRAMES).batch == 1 and small_raft(batch=3).over(FRAMES).batch == 3


CLOSE = {"bfloat16": 0.03, "float16": 0.004}
"""Mean difference from float32 against the mean flow; the steps of either are 2^-8 and 2^-11."""


@pytest.mark.parametrize("small", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["small", "large"])
@pytest.mark.parametrize("precision", CLOSE)
def test_half_precision_is_close_and_correlates_in_full(precision: str, small: bool) -> None:
    raft, pair = small_raft(small=small, precision=precision), numbers((0, 1))
    full = small_raft(small=small).over(FRAMES)(*pair)
    kinds: list[list[torch.dtype]] = []
    raft.network.update_block.register_forward_pre_hook(lambda _, given: kinds.append([part.dtype for part in given]))
    flows = raft.over(FRAMES)
    half = flows(*pair)
    dtype = getattr(torch, precision)
    assert kinds == [[dtype, dtype, torch.float32, torch.float32]] * 2  # hidden, context, correlations, flow
    assert flows.features.kept[0].dtype == flows.contexts.kept[0].dtype == dtype and half.dtype == torch.float32
    assert 0 < (half - full).abs().mean() < CLOSE[precision] * full.abs().mean()


def test_half_precision_does_not_depend_on_the_callers_autocast() -> None:
    raft, pair = small_raft(updates=1), numbers((0, 1))
    with torch.autocast("cpu", torch.bfloat16):
        found = raft.over(FRAMES)(*pair)
    assert torch.equal(found, raft.over(FRAMES)(*pair))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_has_half_precision_and_batches() -> None:
    raft, pairs = Raft(pretrained=False), [(0, 1), (1, 0), (2, 3)]
    full = raft.over(FRAMES)(*numbers(*pairs))
    raft.to("cuda")
    flows = flows_over(FRAMES.cuda(), raft)
    assert raft.settings["precision"] == "float16" and flows.batch == 16
    half = flows(*numbers(*pairs))
    assert half.device.type == "cuda" and half.dtype == torch.float32
    assert 0 < (half.cpu() - full).abs().mean() < CLOSE["float16"] * full.abs().mean()


def test_a_flow_out_of_range_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RaftFlows, "refined", lambda *_: torch.full((1, 2, 128, 136), torch.nan))
    with pytest.raises(DinotrackError, match="range of float16; take"):
        small_raft(precision="float16")(FRAMES[:1], FRAMES[1:2])


def test_settings_name_half_precision_only() -> None:
    """So that what was cached before there was a choice is still found."""
    full, half = small_raft(), small_raft(precision="float16", batch=4)
    assert full.settings == small_raft(precision="float32").settings == small_raft(batch=2).settings
    assert full.settings.keys() == {"kind", "checkpoint", "pretrained", "updates", "small", "seed", "weights"}
    assert half.settings == full.settings | {"precision": "float16"}
    for raft, precision in ((full, "float32"), (half, "float16")):
        again = build_flow(raft.settings)
        assert isinstance(again, Raft) and isinstance(again, VideoFlowEstimator)
        assert again.settings == raft.settings and again.asked_precision == precision


@pytest.mark.parametrize(
    ("options", "message"), [({"precision": "half"}, "choose one of auto, float32"), ({"batch": 0}, "batch=0")]
)
def test_what_raft_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DinotrackError, match=message):
        small_raft(**options)


def test_encoders_see_frames_between_minus_one_and_one() -> None:
    seen: list[Tensor] = []
    raft = small_raft(updates=1)
    raft.network.feature_encoder.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    flows = raft.over(FRAMES)
    assert isinstance(flows, RaftFlows)
    flows(*numbers((0, 1)))
    left, top, right, bottom = flows.margins
    for number, given in enumerate(seen):
        assert given.shape == (1, 3, 119 + top + bottom, 131 + left + right) == (1, 3, 128, 136)
        torch.testing.assert_close(given[0, :, top : top + 119, left : left + 131], FRAMES[number] / 255 * 2 - 1)
        assert torch.equal(given[..., 0], given[..., left])


def test_frames_that_memory_has_no_room_for_are_encoded_again_to_the_same() -> None:
    raft, pairs = small_raft(), [(0, 1), (1, 2), (0, 3), (2, 0)]
    seen, flows = counted(raft), raft.over(FRAMES)
    whole = torch.cat([flows(*numbers(pair)) for pair in pairs])
    assert seen == {"feature_encoder": 4, "context_encoder": 3}
    seen.clear()
    room = 2 * 2.2 * flows.features.kept[0].nbytes  # two frames' features, of the larger contexts one
    few = raft.over(FRAMES, memory=room)
    assert torch.equal(torch.cat([few(*numbers(pair)) for pair in pairs]), whole)
    assert seen == {"feature_encoder": 7, "context_encoder": 4}
    kept = [*few.features.kept.values(), *few.contexts.kept.values()]
    assert len(kept) == 3 and sum(part.nbytes for part in kept) <= room


@pytest.mark.parametrize("estimator", [small_raft(updates=1), Dis("fast")], ids=["raft", "dis"])
def test_what_is_known_of_frames_goes_with_the_flows(estimator: VideoFlowEstimator) -> None:
    """And not when the collector of cycles comes round, which counts objects and not bytes."""
    flows = estimator.over(FRAMES)
    flows(*numbers((0, 1)))
    left = weakref.ref(flows)
    gc.disable()
    try:
        del flows
        assert left() is None
    finally:
        gc.enable()
