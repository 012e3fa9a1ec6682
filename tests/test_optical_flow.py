"""Optical flow: sign, channels and size of what DIS and RAFT return, their weights, and every way to go wrong."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import dinotrack.dis
import dinotrack.raft
from dinotrack.dis import grey
from dinotrack.errors import DinotrackError
from dinotrack.optical_flow import Dis, Raft, build_flow, flows_over
from dinotrack.raft_flows import margins


def texture(height: int, width: int, seed: int = 0) -> Tensor:
    """One smooth random frame, (1, 3, h, w) in [0, 255]."""
    generator = torch.Generator().manual_seed(seed)
    octaves = [
        F.interpolate(
            torch.rand(1, 3, height // k + 2, width // k + 2, generator=generator), (height, width), mode="bicubic"
        )
        for k in (4, 8, 16, 32)
    ]
    total = torch.stack(octaves).mean(0)
    return (total - total.min()) / (total.max() - total.min()) * 255


def warped_pair(height: int, width: int, strength: float) -> tuple[Tensor, Tensor, Tensor]:
    """Frames and the exact flow: source(p) = target(p + flow(p)) with a smooth flow of about `strength` pixels."""
    target = texture(height, width)
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    flow = strength * torch.stack([0.7 + (y / 40).sin(), (x / 50).cos()])
    point = torch.stack([(x + flow[0]) * 2 / width - 1, (y + flow[1]) * 2 / height - 1], -1)
    source = F.grid_sample(target, point[None], mode="bicubic", align_corners=False, padding_mode="reflection")
    return source.clamp(0, 255).round().byte(), target.round().byte(), flow


@pytest.mark.parametrize("shift", [(3, 0), (0, 2), (-4, 1)])
def test_dis_finds_a_shift_with_its_sign_and_channel(shift: tuple[int, int]) -> None:
    dx, dy = shift
    source = texture(72, 96).byte()
    target = source.roll((dy, dx), (2, 3))  # what was at (x, y) is at (x + dx, y + dy)
    flow = Dis()(source, target)
    assert flow.shape == (1, 2, 72, 96)
    assert flow.dtype == torch.float32
    middle = flow[0, :, 16:-16, 16:-16].flatten(1).mean(1)
    torch.testing.assert_close(middle, torch.tensor([dx, dy]).float(), atol=0.02, rtol=0)


def test_dis_follows_smooth_motion_better_at_full_resolution() -> None:
    source, target, flow = warped_pair(144, 192, 3.0)

    def error(dis: Dis) -> float:
        return (dis(source, target)[0] - flow)[:, 12:-12, 12:-12].norm(dim=0).mean().item()

    assert error(Dis()) < 0.1
    assert error(Dis()) < 0.85 * error(Dis(finest_scale=1))
    assert error(Dis()) < error(Dis(refinement_iterations=0))


def test_dis_pairs_are_independent_and_repeatable() -> None:
    source, target, _ = warped_pair(60, 80, 2.0)
    others = texture(60, 80, seed=1).byte()
    batch = Dis()(torch.cat([source, others, source]), torch.cat([target, source, target]))
    assert torch.equal(batch[0], batch[2])
    assert torch.equal(batch[:1], Dis()(source, target))
    assert Dis()(source[:0], target[:0]).shape == (0, 2, 60, 80)


def test_dis_makes_each_frame_grey_once(monkeypatch: pytest.MonkeyPatch) -> None:
    frames, seen = torch.cat([texture(60, 80, seed).byte() for seed in range(3)]), list[Tensor]()
    pairs = list(itertools.permutations(range(3), 2))
    expected = torch.cat([Dis()(frames[i : i + 1], frames[j : j + 1]) for i, j in pairs])
    monkeypatch.setattr(dinotrack.dis, "grey", lambda frame: seen.append(frame) or grey(frame))
    flows, (source, target) = flows_over(frames, Dis()), torch.tensor(pairs).T
    assert torch.equal(torch.cat([flows(source[:2], target[:2]), flows(source[2:], target[2:])]), expected)
    assert len(seen) == len(flows) == 3


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (12, 300), (33, 17), (90, 61)])
@pytest.mark.parametrize("finest_scale", [0, 1, 2, 3])
def test_dis_takes_frames_of_any_size(size: tuple[int, int], finest_scale: int) -> None:
    frame = texture(*size).byte() if min(size) > 4 else torch.zeros(1, 3, *size, dtype=torch.uint8)
    flow = Dis(finest_scale=finest_scale)(frame, frame)
    assert flow.shape == (1, 2, *size)
    assert flow.abs().max() < 0.1


def test_grey_frames_weigh_green_most() -> None:
    frame = torch.zeros(3, 1, 3, dtype=torch.uint8)
    frame[[0, 1, 2], 0, [0, 1, 2]] = 255
    assert np.array_equal(grey(frame), np.round(255 * np.array([[0.299, 0.587, 0.114]])))


@pytest.mark.parametrize("size", [(1, 1), (127, 129), (128, 128), (854, 476), (480, 368), (135, 1000)])
def test_margins_centre_a_frame_in_multiples_of_8_of_at_least_128(size: tuple[int, int]) -> None:
    left, top, right, bottom = margins(*size)
    for side, before, after in ((size[0], left, right), (size[1], top, bottom)):
        padded = side + before + after
        assert padded % 8 == 0
        assert padded >= 128
        assert padded - side < max(8, 128 - side + 1)
        assert 0 <= after - before <= 1


@pytest.fixture(scope="module")
def small() -> Raft:
    return Raft(small=True, pretrained=False, updates=2)


@pytest.mark.parametrize("size", [(33, 50), (128, 137)])
def test_raft_returns_the_frames_size(small: Raft, size: tuple[int, int]) -> None:
    flow = small(texture(*size).byte(), texture(*size, seed=1).byte())
    assert flow.shape == (1, 2, *size)
    assert flow.isfinite().all()
    assert not flow.requires_grad


def test_raft_large_runs_on_the_smallest_frame() -> None:
    raft = Raft(pretrained=False, updates=1)
    flow = raft(texture(8, 8).byte(), texture(8, 8, seed=1).byte())
    assert flow.shape == (1, 2, 8, 8)


def test_raft_by_checkpoint_seed_and_settings(small: Raft, tmp_path: Path) -> None:
    source, target = texture(40, 40).byte(), texture(40, 40, seed=1).byte()
    torch.save(small.network.state_dict(), tmp_path / "raft.pth")
    state = torch.get_rng_state()
    loaded = Raft(str(tmp_path / "raft.pth"), small=True, updates=2)
    other = Raft(small=True, pretrained=False, updates=2, seed=1)
    again = build_flow(json.loads(json.dumps(loaded.settings)))
    assert torch.equal(torch.get_rng_state(), state)
    expected = small(source, target)
    assert torch.equal(loaded(source, target), expected)
    assert torch.equal(again(source, target), expected)
    assert again.settings == loaded.settings
    assert loaded.settings["weights"].startswith("sha256:")
    assert not torch.equal(other(source, target), expected)
    with pytest.raises(DinotrackError, match="raft_large"):
        Raft(str(tmp_path / "raft.pth"))
    with pytest.raises(DinotrackError, match="sha256:old"):
        build_flow({**loaded.settings, "weights": "sha256:old"})


def test_raft_names_the_ways_out_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(**options: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(dinotrack.raft, "raft_large", offline)
    with pytest.raises(DinotrackError, match=r"raft_large_C_T_SKHT_V2.*flow.checkpoint=FILE.*flow=dis"):
        Raft()


def test_flow_refuses_what_does_not_exist(tmp_path: Path) -> None:
    (tmp_path / "raft.pth").write_bytes(b"no checkpoint")
    with pytest.raises(DinotrackError, match="cannot read"):
        Raft(str(tmp_path / "raft.pth"))
    with pytest.raises(DinotrackError, match=r"missing\.pth"):
        Raft("missing.pth")
    with pytest.raises(DinotrackError, match="updates=0"):
        Raft(updates=0)
    with pytest.raises(DinotrackError, match="ultrafast, fast, medium"):
        Dis(preset="slow")
    with pytest.raises(DinotrackError, match="finest_scale=-1"):
        Dis(finest_scale=-1)
    with pytest.raises(DinotrackError, match="'farneback'"):
        build_flow({"kind": "farneback"})
    assert build_flow(Dis(finest_scale=1).settings).settings == Dis(finest_scale=1).settings
