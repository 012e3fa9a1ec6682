"""The coordinate convention: every conversion there and back, and sampling against loops."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

from dinotrack.errors import DinotrackError
from dinotrack.geometry import (
    centres,
    constant_scale,
    corners,
    inside,
    look_up,
    nearest_cell,
    normalise,
    resample,
    rescale,
    resize_frames,
    sample,
    to_index,
    window,
    working_size,
)
from dinotrack.structs import PIXELS, Grid
from twins import array, bilinear

GRIDS = [Grid(7.0, 7.0), Grid(7.0, 3.5), Grid(14.0, 7.0), Grid(8.0, 0.5), PIXELS]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((854, 480), (854, 476)),
        ((480, 854), (476, 854)),
        ((1920, 1080), (854, 476)),
        ((368, 480), (651, 854)),
        ((256, 256), (854, 854)),
        ((192, 144), (854, 637)),
    ],
)
def test_the_working_size_keeps_the_aspect(size: tuple[int, int], expected: tuple[int, int]) -> None:
    width, height = working_size(size, 854, 7)
    assert (width, height) == (expected[0] // 7 * 7, expected[1] // 7 * 7) == expected


def test_the_working_size_is_exact_arithmetic() -> None:
    for width in range(20, 400, 7):
        for height in (33, 90, 144, 333, 480):
            for resolution, stride in ((854, 7), (480, 7), (max(width, height), 14), (896, 14)):
                scale = Fraction(resolution, max(width, height))
                expected = tuple(math.floor(side * scale) // stride * stride for side in (width, height))
                if min(expected):
                    assert working_size((width, height), resolution, stride) == expected


def test_a_side_without_room_for_a_stride_is_refused() -> None:
    with pytest.raises(DinotrackError, match="1000x10 video at resolution=100 has no room for stride 7"):
        working_size((1000, 10), 100, 7)


def test_pixel_constants_hold_at_a_long_side_of_854() -> None:
    assert constant_scale((854, 476)) == constant_scale((476, 854)) == 1.0
    assert constant_scale((427, 100)) == 0.5


def test_a_frame_of_the_published_size_has_67_by_121_tokens() -> None:
    tokens = torch.nn.Conv2d(3, 1, 14, stride=7, device="meta")(torch.zeros(1, 3, 476, 854, device="meta"))
    assert tokens.shape[2:] == (67, 121)
    xy = centres(67, 121, Grid(7.0, 7.0))
    assert xy[0].tolist() == [7.0, 7.0]
    assert xy[-1].tolist() == [854 - 7.0, 476 - 7.0]  # as far from the last edge as from the first


def test_frames_are_resized_by_lanczos_in_8_bit() -> None:
    frames = torch.randint(0, 256, (2, 3, 30, 41), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert resize_frames(frames, (41, 30)) is frames
    resized = resize_frames(frames, (28, 21))
    assert resized.shape == (2, 3, 21, 28) and resized.dtype == torch.uint8
    for before, after in zip(frames, resized, strict=True):
        image = Image.fromarray(before.permute(1, 2, 0).numpy()).resize((28, 21), Image.Resampling.LANCZOS)
        assert np.array_equal(np.asarray(image), after.permute(1, 2, 0).numpy())


@pytest.mark.parametrize("size", [(30, 25), (125, 70), (90, 35)])
def test_resizing_moves_what_is_seen_as_rescale_says(size: tuple[int, int]) -> None:
    xy, here = torch.tensor([23.2, 30.9]), (60, 50)
    spot = torch.exp(-(centres(50, 60, PIXELS) - xy).square().sum(1) / 40).view(1, 1, 50, 60)
    frames = (spot * 255).round().byte().expand(1, 3, 50, 60)
    weight = resize_frames(frames, size)[0, 0].double().flatten()
    centroid = weight @ centres(size[1], size[0], PIXELS).double() / weight.sum()
    assert (centroid - rescale(xy, here, size)).abs().max() < 0.03 * max(size) / 60


def test_rescaling_there_and_back(rng: torch.Generator) -> None:
    xy = torch.rand(4, 5, 2, generator=rng, dtype=torch.float64) * 100
    there = rescale(xy, (192, 144), (854, 637))
    assert torch.allclose(there[..., 0], xy[..., 0] * 854 / 192) and torch.allclose(
        there[..., 1], xy[..., 1] * 637 / 144
    )
    assert torch.allclose(rescale(there, (854, 637), (192, 144)), xy)
    corner = rescale(torch.tensor([[192.0, 144.0]]), (192, 144), (854, 637))
    assert torch.allclose(corner, torch.tensor([[854.0, 637.0]]))  # the bottom-right corner stays the corner


@pytest.mark.parametrize("grid", GRIDS)
def test_cells_are_numbered_row_by_row_and_found_again(grid: Grid) -> None:
    xy = centres(4, 6, grid)
    for i in range(4):
        for j in range(6):
            assert xy[i * 6 + j].tolist() == [grid.offset + grid.stride * j, grid.offset + grid.stride * i]
            assert to_index(xy, grid)[i * 6 + j].tolist() == [j, i]
    assert nearest_cell(xy, grid, 4, 6).tolist() == list(range(24))


@pytest.mark.parametrize("grid", GRIDS)
def test_the_nearest_cell_is_nearest(grid: Grid, rng: torch.Generator) -> None:
    xy = (torch.rand(300, 2, generator=rng) * 2 - 0.5) * 6 * grid.stride  # also far outside
    distance = torch.cdist(xy.double(), centres(4, 6, grid).double())
    assert torch.equal(nearest_cell(xy, grid, 4, 6), distance.argmin(1))


def test_the_frame_ends_before_its_right_and_bottom_edges() -> None:
    xy = torch.tensor([[0.0, 0.0], [5.999, 3.999], [6.0, 1.0], [1.0, 4.0], [-0.001, 1.0], [1.0, -0.001]])
    assert inside(xy, (6, 4)).tolist() == [True, True, False, False, False, False]
    assert inside(torch.tensor([[float("nan"), 1.0]]), (6, 4)).tolist() == [False]
    assert inside(torch.zeros(0, 2), (6, 4)).shape == (0,)


@pytest.mark.parametrize("shape", [(5, 7), (1, 7), (5, 1), (1, 1), (2, 2)])
@pytest.mark.parametrize("grid", GRIDS)
def test_sampling_is_bilinear_and_clamped(grid: Grid, shape: tuple[int, int], rng: torch.Generator) -> None:
    maps = torch.randn(3, 2, *shape, generator=rng)
    frame = torch.randint(0, 3, (40,), generator=rng)
    xy = (torch.rand(40, 2, generator=rng) * 1.6 - 0.3) * grid.stride * 7
    found = sample(maps, frame, xy, grid)
    for n in range(40):
        expected = bilinear(array(maps[frame[n]]), float(xy[n, 0]), float(xy[n, 1]), grid)
        assert np.allclose(found[n], expected, atol=1e-5)
    cells, weights = corners(xy, grid, *shape)
    assert cells.min() >= 0 and cells.max() < shape[0] * shape[1]
    assert torch.allclose(weights.sum(1), torch.ones(40)) and weights.min() >= 0


@pytest.mark.parametrize("grid", GRIDS)
def test_sampling_at_the_centres_returns_the_map(grid: Grid, rng: torch.Generator) -> None:
    maps = torch.randn(1, 3, 4, 6, generator=rng)
    found = sample(maps, torch.zeros(24, dtype=torch.long), centres(4, 6, grid), grid)
    assert torch.equal(found, maps[0].flatten(1).T)
    assert sample(maps.half(), torch.zeros(0, dtype=torch.long), torch.zeros(0, 2), grid).shape == (0, 3)


def test_sampling_a_ramp_returns_the_position(rng: torch.Generator) -> None:
    ramp = centres(9, 11, Grid(7.0, 3.5)).T.reshape(1, 2, 9, 11)
    xy = torch.rand(50, 2, generator=rng) * 56 + 3.5
    assert torch.allclose(sample(ramp, torch.zeros(50, dtype=torch.long), xy, Grid(7.0, 3.5)), xy, atol=1e-4)


@pytest.mark.parametrize("shape", [(5, 7), (1, 7), (5, 1)])
@pytest.mark.parametrize("source", GRIDS)
def test_resampling_a_map_is_sampling_at_the_other_cells(
    source: Grid, shape: tuple[int, int], rng: torch.Generator
) -> None:
    maps, target = torch.randn(2, 3, *shape, generator=rng), Grid(0.8 * source.stride, 0.3 * source.stride)
    found = resample(maps, source, target, 8, 9)
    xy = centres(8, 9, target)
    assert found.shape == (2, 3, 8, 9)
    for t in range(2):
        expected = np.array([bilinear(array(maps[t]), float(x), float(y), source) for x, y in xy])
        assert np.allclose(found[t].flatten(1).T, expected, atol=1e-5)


@pytest.mark.parametrize("size", [(12, 8), (24, 16), (9, 8)])
def test_a_mask_is_looked_up_at_the_pixel_that_holds_the_position(size: tuple[int, int], rng: torch.Generator) -> None:
    masks = torch.rand(3, 8, 12, generator=rng) > 0.5
    frame = torch.randint(0, 3, (60,), generator=rng)
    xy = torch.rand(60, 2, generator=rng) * torch.tensor(size)
    xy[0], xy[1] = torch.tensor(size), torch.tensor([0.0, 0.0])  # the corners of the frame
    found = look_up(masks, frame, xy, size)
    for n in range(60):
        column = min(int(float(xy[n, 0]) * 12 / size[0]), 11)
        row = min(int(float(xy[n, 1]) * 8 / size[1]), 7)
        assert bool(found[n]) == bool(masks[frame[n], row, column])


def test_the_losses_units_are_those_of_the_published_code() -> None:
    xy = torch.tensor([[0.0, 0.0], [853.0, 475.0], [426.5, 118.75]])
    assert torch.allclose(normalise(xy, (854, 476)), torch.tensor([[-1.0, -1], [1, 1], [0, -0.5]]))


@pytest.mark.parametrize(("radius", "stride"), [(35.0, 7.0), (34.9, 7.0), (17.5, 7.0), (3.0, 7.0), (7.87, 1.0)])
def test_the_window_just_holds_the_disc(radius: float, stride: float) -> None:
    half = window(radius, stride)
    assert half * stride <= radius < (half + 1) * stride
