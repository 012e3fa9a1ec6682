"""Positions behind occluders: cubics that pass through what was seen, and do not carry its jitter into the gap."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from dinotrack.errors import DinotrackError
from dinotrack.interpolation import fill, middle, through_occlusion
from dinotrack.structs import Tracks
from twins import array


def tracks_of(xy: Tensor, visible: Tensor) -> Tracks:
    count, frames = visible.shape
    return Tracks(torch.rand(count, 3), xy.float(), visible, torch.rand(count, frames), (80, 60), 25.0)


def speed_twin(frames: list[int], x: np.ndarray, gap: int) -> float | None:
    """Theil-Sen slope over the known frames at most 8 before `gap`, the last known one; None of fewer than 3."""
    near = [t for t in frames if gap - 8 <= t <= gap]
    slopes = [(x[b] - x[a]) / (b - a) for a, b in itertools.combinations(near, 2)]
    return float(np.median(slopes)) if len(near) >= 3 else None


def gap_twin(x: np.ndarray, known: np.ndarray) -> np.ndarray:
    """One coordinate of one track, from the cubic Hermite basis."""
    frames, result = [int(t) for t in known.nonzero()[0]], x.copy()
    for t in range(len(x)):
        if known[t] or not frames:
            continue
        if t < frames[0] or t > frames[-1]:
            result[t] = x[frames[0] if t < frames[0] else frames[-1]]
            continue
        p, q = max(k for k in frames if k < t), min(k for k in frames if k > t)
        h, chord, s = q - p, (x[q] - x[p]) / (q - p), (t - p) / (q - p)
        m0 = speed_twin(frames, x, p)
        mirrored = speed_twin([len(x) - 1 - k for k in reversed(frames)], x[::-1], len(x) - 1 - q)
        m0, m1 = chord if m0 is None else m0, chord if mirrored is None else -mirrored
        result[t] = (
            (2 * s**3 - 3 * s**2 + 1) * x[p]
            + (s**3 - 2 * s**2 + s) * h * m0
            + (3 * s**2 - 2 * s**3) * x[q]
            + (s**3 - s**2) * h * m1
        )
    return result


def natural_cubic(x: np.ndarray, frames: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The natural cubic spline through x at `frames`: second derivatives from the tridiagonal system, 0 at both ends."""
    y, h, n = x[frames], np.diff(frames).astype(float), len(frames)
    system, right = np.eye(n), np.zeros(n)
    for i in range(1, n - 1):
        system[i, i - 1 : i + 2] = h[i - 1], 2 * (h[i - 1] + h[i]), h[i]
        right[i] = 6 * ((y[i + 1] - y[i]) / h[i] - (y[i] - y[i - 1]) / h[i - 1])
    m = np.linalg.solve(system, right)
    i = np.searchsorted(frames, at) - 1
    a, b, h = frames[i + 1] - at, at - frames[i], h[i]
    return (
        (m[i] * a**3 + m[i + 1] * b**3) / (6 * h)
        + (y[i] / h - m[i] * h / 6) * a
        + (y[i + 1] / h - m[i + 1] * h / 6) * b
    )


def pchip(x: np.ndarray, frames: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Fritsch and Carlson's monotone cubic: weighted harmonic means of the secants, 0 where these differ in sign."""
    y, h = x[frames], np.diff(frames).astype(float)
    secant, slope = np.diff(y) / h, np.zeros(len(frames))
    for i in range(1, len(frames) - 1):
        if secant[i - 1] * secant[i] > 0:
            left, right = h[i - 1] + 2 * h[i], 2 * h[i - 1] + h[i]
            slope[i] = (left + right) / (left / secant[i - 1] + right / secant[i])
    i = np.searchsorted(frames, at) - 1
    s, h = (at - frames[i]) / h[i], h[i]
    bend = s * (1 - s) ** 2 * (slope[i] - secant[i]) - s**2 * (1 - s) * (slope[i + 1] - secant[i])
    return y[i] + h * (s * secant[i] + bend)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_fill_equals_its_twin(share: float, rng: torch.Generator) -> None:
    values = torch.randn(30, 26, 2, generator=rng, dtype=torch.float64).cumsum(1)
    known = torch.rand(30, 26, generator=rng) < share
    filled = fill(values, known, smooth=True)
    expected = [[gap_twin(array(x), array(k)) for x in row.T] for row, k in zip(values, known, strict=True)]
    assert np.allclose(filled.transpose(1, 2), expected, atol=1e-9)


def test_linear_is_numpys(rng: torch.Generator) -> None:
    values, known = torch.randn(20, 15, 1, generator=rng).double(), torch.rand(20, 15, generator=rng) < 0.4
    filled = fill(values, known, smooth=False)
    for row, x, there in zip(filled, values, known, strict=True):
        frames = there.nonzero()[:, 0]
        expected = np.interp(range(15), frames, array(x[frames, 0])) if len(frames) else array(x[:, 0])
        assert np.allclose(row[:, 0], expected)


def test_what_is_seen_stays_and_a_straight_path_is_found(rng: torch.Generator) -> None:
    start, speed = torch.rand(6, 1, 2, generator=rng) * 50, torch.randn(6, 1, 2, generator=rng)
    exact = start + speed * torch.arange(20)[:, None]
    visible = torch.rand(6, 20, generator=rng) < 0.6
    visible[:, [0, 19]] = True
    guessed = exact + ~visible[..., None] * 30
    tracks = tracks_of(guessed, visible)
    for method in ("linear", "spline"):
        found = through_occlusion(tracks, method)
        assert torch.allclose(found.xy, exact, atol=1e-4)
        assert torch.equal(found.xy[visible], tracks.xy[visible])
        assert all(getattr(found, name) is getattr(tracks, name) for name in ("queries", "visible", "confidence"))
    assert torch.equal(tracks.xy, guessed)  # nothing is written in place


def hidden_curves(rng: torch.Generator, gap: int) -> tuple[Tensor, Tensor]:
    """Turning paths of 90 frames, hidden for `gap` frames in the middle."""
    t = torch.arange(90, dtype=torch.float64)
    phase = torch.rand(40, 1, 2, generator=rng) * 6
    visible = (t < 45 - gap / 2) | (t >= 45 + gap / 2)
    return 40 * torch.sin(t[:, None] / 18 + phase), visible.expand(40, -1)


@pytest.mark.parametrize(("jitter", "gap"), [(0.5, 20), (0.5, 30), (1.0, 30)])
def test_a_long_gap_is_calm_where_a_natural_cubic_runs_wild(jitter: float, gap: int, rng: torch.Generator) -> None:
    """Why not a natural cubic, and why not PCHIP: both take their speeds from the frames beside the gap."""
    exact, visible = hidden_curves(rng, gap)
    seen = exact + jitter * torch.randn(exact.shape, generator=rng, dtype=torch.float64)
    frames, at = (array(v.nonzero()[:, 0]).astype(int) for v in (visible[0], ~visible[0]))
    hidden, truth = fill(seen, visible, smooth=True)[:, at], exact[:, at]

    def others(spline) -> Tensor:
        return torch.tensor(np.stack([[spline(array(x), frames, at) for x in row.T] for row in seen])).transpose(1, 2)

    error, natural, monotone, straight = (
        (found - truth).norm(dim=-1)
        for found in (hidden, others(natural_cubic), others(pchip), fill(seen, visible, smooth=False)[:, at])
    )
    assert error.mean() < 0.5 * natural.mean()
    assert error.mean() < 0.6 * monotone.mean()
    assert error.mean() < 0.6 * straight.mean()
    assert error.max() < 0.5 * natural.max()


def test_without_jitter_the_curve_is_nearer_than_its_chord(rng: torch.Generator) -> None:
    exact, visible = hidden_curves(rng, 12)
    error = (fill(exact, visible, smooth=True) - exact).norm(dim=-1)
    straight = (fill(exact, visible, smooth=False) - exact).norm(dim=-1)
    assert error.max() < 0.6 * straight.max()


def test_one_wrong_position_at_the_edge_does_not_bend_the_gap() -> None:
    """A point that the occluder drags along in its last visible frame; its position stays, its speed is not believed."""
    x = torch.arange(40, dtype=torch.float64)[None, :, None].clone()
    x[0, 14] += 6
    known = torch.ones(1, 40, dtype=torch.bool)
    known[0, 15:30] = False
    filled = fill(x, known, smooth=True)[0, 14:30, 0]
    assert (filled - torch.arange(14.0, 30.0)).max() <= 6  # nowhere farther off than that one position
    assert filled[-1] == pytest.approx(29, abs=0.5)


def test_few_visible_frames() -> None:
    xy = torch.tensor([[[0.0, 5.0], [9.0, 9.0], [9.0, 9.0], [3.0, 2.0], [9.0, 9.0], [8.0, 8.0]]]).repeat(4, 1, 1)
    visible = torch.zeros(4, 6, dtype=torch.bool)
    visible[1, 3] = visible[2, [0, 3]] = visible[3, [0, 3, 5]] = True
    found = through_occlusion(tracks_of(xy, visible)).xy
    assert torch.equal(found[0], xy[0])  # never visible: as predicted
    assert found[1].tolist() == [[3.0, 2.0]] * 6
    assert torch.allclose(found[2, :4], torch.tensor([[0.0, 5.0], [1.0, 4.0], [2.0, 3.0], [3.0, 2.0]]))
    assert found[2, 4:].tolist() == [[3.0, 2.0]] * 2
    assert torch.allclose(found[3, [1, 4]], torch.tensor([[1.0, 4.0], [5.5, 5.0]]))


def test_time_has_no_direction(rng: torch.Generator) -> None:
    values, known = torch.randn(9, 30, 2, generator=rng).double(), torch.rand(9, 30, generator=rng) < 0.6
    forward, backward = fill(values, known, smooth=True), fill(values.flip(1), known.flip(1), smooth=True).flip(1)
    assert torch.allclose(forward, backward)


def test_nothing_to_fill(rng: torch.Generator) -> None:
    tracks = tracks_of(torch.randn(3, 5, 2, generator=rng), torch.ones(3, 5, dtype=torch.bool))
    assert torch.equal(through_occlusion(tracks).xy, tracks.xy)
    assert through_occlusion(tracks[:0]).xy.shape == (0, 5, 2)
    hidden = replace(tracks, visible=~tracks.visible)
    assert through_occlusion(hidden, "none") is hidden


def test_half_precision_keeps_its_type() -> None:
    tracks = tracks_of(torch.tensor([[[0.0, 0.0], [7.0, 7.0], [4.0, 2.0]]]), torch.tensor([[True, False, True]]))
    found = through_occlusion(replace(tracks, xy=tracks.xy.bfloat16())).xy
    assert found.dtype == torch.bfloat16
    assert found[0, 1].tolist() == [2.0, 1.0]


def test_another_method_is_refused() -> None:
    tracks = tracks_of(torch.zeros(1, 3, 2), torch.ones(1, 3, dtype=torch.bool))
    with pytest.raises(DinotrackError, match=r"interpolate=cubic.*none, linear, spline"):
        through_occlusion(tracks, "cubic")


def test_middle_is_numpys_median(rng: torch.Generator) -> None:
    values = torch.randn(5, 6, 3, generator=rng).double()
    values[0, :3], values[1, 0] = torch.nan, torch.nan
    assert np.allclose(middle(values, 1), np.nanmedian(array(values), 1))
    assert middle(torch.full((2, 3), torch.nan), 1).isnan().all()
