"""The synthetic video is what its tracks say it is: exact positions, exact visibility, one long occlusion."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

import dinotrack.data
from dinotrack.data import open_synthetic, open_video
from dinotrack.data.layers import look, paint
from dinotrack.data.synthetic import Clip, _scene, synthetic_clip
from dinotrack.data.textures import texture
from dinotrack.errors import DinotrackError
from dinotrack.geometry import centres, look_up, sample
from dinotrack.structs import PIXELS

SIZE = (128, 96)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Rendering is many small operations, which threads only slow down on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def clean() -> Clip:
    """Without changes of light or noise."""
    return synthetic_clip(3, 24, SIZE, points=200, illumination=0, noise=0)


def scene(seed, frames=24, size=SIZE, look_alikes=False, motion=1.0):
    return _scene(np.random.default_rng(seed), frames, size, look_alikes, motion)


def colour_change(clip: Clip, shift: tuple[float, float]) -> float:
    """Median over points of the largest change, over a point's visible frames, of the colour that lies `shift` beside it."""
    count = clip.xy.shape[1]
    frame = torch.arange(count).repeat(len(clip.xy))
    colours = sample(clip.video.frames.float(), frame, clip.xy.reshape(-1, 2) + torch.tensor(shift), PIXELS)
    colours = colours.reshape(len(clip.xy), count, 3)
    changes = [(c[v] - c[v].mean(0)).abs().max() for c, v in zip(colours, clip.visible, strict=True)]
    return float(torch.stack(changes).median())


def test_a_visible_point_keeps_its_colour_and_only_it_does(clean):
    exact = colour_change(clean, (0, 0))
    assert exact < 8
    directions = [(math.cos(a), math.sin(a)) for a in np.arange(8) * math.pi / 4]
    for reach, ratio in ((2.0, 2.5), (1.0, 1.5)):
        assert all(colour_change(moved(clean, (reach * x, reach * y)), (0, 0)) > ratio * exact for x, y in directions)


def moved(clip: Clip, shift: tuple[float, float]) -> Clip:
    """The tracks beside the truth in odd frames only: a fixed offset would follow the neighbouring point just as well."""
    xy = clip.xy.clone()
    xy[:, 1::2] += torch.tensor(shift)
    return Clip(clip.video, xy, clip.visible, clip.layer)


def test_registration_finds_no_shift_between_neighbouring_frames(clean):
    """Lucas-Kanade twin: the translation that registers a patch to the same point's in the next frame is zero."""
    offsets = torch.cartesian_prod(torch.arange(-3.0, 4), torch.arange(-3.0, 4))
    frames = clean.video.frames.float().mean(1, keepdim=True)
    row, frame = (clean.visible[:, 1:] & clean.visible[:, :-1]).nonzero()[::3].unbind(1)

    def patches(frame, x=0.0, y=0.0):
        there = clean.xy[row, frame][:, None] + offsets + torch.tensor([x, y])
        values = sample(frames, frame.repeat_interleave(len(offsets)), there.reshape(-1, 2), PIXELS)
        return values.reshape(len(row), len(offsets))

    after = frame + 1
    slope = [patches(after, 0.5, 0) - patches(after, -0.5, 0), patches(after, 0, 0.5) - patches(after, 0, -0.5)]
    slope = torch.stack(slope, -1)
    shifts = torch.linalg.lstsq(slope, (patches(frame) - patches(after))[..., None]).solution[..., 0]
    shifts = shifts[torch.linalg.svdvals(slope)[:, 1] > 20]
    assert len(shifts) > 100
    assert shifts.median(0).values.abs().max() < 0.02
    assert shifts.norm(dim=1).median() < 0.1


def test_frames_show_the_layers_where_the_layers_are(clean):
    """Lucas-Kanade twin: no shift between a frame and the layers' colours at its pixels' centres, nor to the masks."""
    layers = scene(3)
    for frame in (0, 13):
        picture = clean.video.frames[frame].float()
        xy = centres(SIZE[1], SIZE[0], PIXELS)
        depth, uv = look(layers, xy.double(), frame)
        direct = 255 * paint(layers, depth, uv).T.reshape(3, SIZE[1], SIZE[0])
        slope = (
            torch.stack([direct[:, 1:-1, 2:] - direct[:, 1:-1, :-2], direct[:, 2:, 1:-1] - direct[:, :-2, 1:-1]], -1)
            / 2
        )
        change = (picture - direct)[:, 1:-1, 1:-1]
        smooth = slope.norm(dim=-1).amax(0) < 25  # not an outline
        shift = torch.linalg.lstsq(slope[:, smooth].reshape(-1, 2), change[:, smooth].reshape(-1, 1)).solution
        assert shift.abs().max() < 0.02
        assert change[:, smooth].abs().mean() < 4
        objects = (depth > 0) & (depth < len(layers) - 1)
        assert torch.equal(clean.video.masks[frame], objects.reshape(SIZE[1], SIZE[0]))


def test_nothing_lies_beyond_a_layers_reach():
    everywhere = centres(48, 64, PIXELS).double()
    for seed in range(4):
        for layer in scene(seed, 3, (64, 48))[1:-1]:
            for frame in range(3):
                on = layer.covers(everywhere[:, None].expand(-1, 3, -1))[:, frame]
                assert on.any()
                assert layer.near(everywhere[on], frame).all()


@pytest.mark.parametrize(("seed", "size"), [(0, (90, 70)), (1, (61, 85))])
def test_visible_is_what_looking_from_the_front_says(seed, size):
    clip = synthetic_clip(seed, 12, size, points=100)
    layers = scene(seed, 12, size)
    for frame in range(12):
        xy = clip.xy[:, frame].double()
        depth, _ = look(layers, xy, frame)
        framed = (xy >= 0).all(1) & (xy < torch.tensor(size)).all(1)
        assert torch.equal(clip.visible[:, frame], framed & (depth == clip.layer))


def test_masks_agree_with_visible_points():
    clip = synthetic_clip(5, 12, SIZE, points=200)
    row, frame = clip.visible.nonzero().unbind(1)
    on = look_up(clip.video.masks, frame, clip.xy[row, frame], SIZE)
    objects = clip.layer[row] < clip.layer.max()
    assert (on == objects).float().mean() > 0.97
    assert 0.03 < clip.video.masks.float().mean() < 0.4


@pytest.mark.parametrize("seed", [0, 1])
def test_motion_is_the_formula_and_its_inverse(seed):
    generator = torch.Generator().manual_seed(seed)
    uv = torch.randn(20, 2, generator=generator, dtype=torch.float64) * 15
    for layer in scene(seed, size=(40, 32)):
        motion = layer.motion
        xy = motion.to_frame(uv)
        for n, t in ((0, 0), (7, 11), (19, 23)):
            u, v = uv[n].tolist()
            v += float(motion.bend[t]) * math.sin(motion.bend_rate * u + motion.bend_phase)
            c, s = math.cos(motion.angle[t]), math.sin(motion.angle[t])
            there = [float(motion.centre[t, 0]) + float(motion.scale[t]) * (c * u - s * v)]
            there += [float(motion.centre[t, 1]) + float(motion.scale[t]) * (s * u + c * v)]
            torch.testing.assert_close(xy[n, t], torch.tensor(there, dtype=torch.float64))
        torch.testing.assert_close(motion.to_layer(xy), uv[:, None].expand_as(xy))


@pytest.mark.parametrize(
    ("seed", "size", "frames"), [(0, (96, 72), 24), (1, (50, 80), 24), (2, (80, 30), 40), (3, (80, 60), 12)]
)
def test_one_object_passes_behind_the_occluder(seed, size, frames):
    clip = synthetic_clip(seed, frames, size, points=150)
    layers = scene(seed, frames, size)
    xy = clip.xy[clip.layer == 1].double()
    hidden = layers[0].covers(xy)
    assert len(xy) > 3
    assert hidden.double().mean(1).median() == pytest.approx(0.3, abs=0.06)
    if frames >= 24:
        assert not hidden[:, 0].any()
        assert not hidden[:, -1].any()
    run = (hidden[:, 1:] != hidden[:, :-1]).sum(1)
    assert run.double().median() == 2, "in once, out once"
    assert not (clip.visible[clip.layer == 1] & hidden).any()


def test_points_are_placed_as_promised():
    for seed in range(3):
        clip = synthetic_clip(seed, 6, (48, 40), points=31)
        assert clip.xy.shape == (31, 6, 2)
        assert clip.visible.sum(1).min() >= 2
        assert (clip.layer < len(scene(seed, 2, (48, 40))) - 1).sum() == 21
        assert clip.layer.min() >= 1


def test_motion_is_smooth_and_as_large_as_in_real_videos():
    for seed in range(2):
        clip = synthetic_clip(seed, 24, (64, 48))
        step = clip.xy.diff(dim=1).norm(dim=-1) / 64
        background = clip.layer == clip.layer.max()
        assert 0.003 < step[background].mean() < 0.008
        assert 0.012 < step[~background].mean() < 0.035
        assert step.max() < 0.055
        assert (clip.xy.diff(n=2, dim=1).norm(dim=-1) / 64).max() < 0.008


def test_longer_clips_travel_as_far_and_shorter_ones_move_as_fast():
    def travel(frames, motion=1.0):
        centre = scene(0, frames, (24, 20), motion=motion)[1].motion.centre
        return float((centre[-1] - centre[0]).norm()), float(centre.diff(dim=0).norm(dim=-1).max())

    way, speed = travel(24)
    assert travel(70)[0] == pytest.approx(way)
    assert travel(70)[1] < speed / 2
    assert travel(5)[1] == pytest.approx(speed, rel=0.15)
    assert travel(24, 0.5)[1] < 0.6 * speed
    assert travel(24, 0)[1] == 0


def test_look_alikes_share_a_texture_and_nothing_else_changes():
    plain, alike = scene(4, size=(40, 32)), scene(4, size=(40, 32), look_alikes=True)
    assert not torch.equal(plain[1].texture, plain[2].texture)
    assert torch.equal(alike[1].texture, alike[2].texture)
    assert torch.equal(plain[1].texture, alike[1].texture)
    assert torch.equal(plain[2].motion.centre, alike[2].motion.centre)
    clips = [synthetic_clip(4, 3, (40, 32), look_alikes=flag) for flag in (False, True)]
    assert torch.equal(clips[0].xy, clips[1].xy)
    assert not torch.equal(clips[0].video.frames, clips[1].video.frames)


def test_the_seed_decides_everything():
    one, two, other = (synthetic_clip(seed, 3, (48, 40), points=9) for seed in (7, 7, 8))
    assert one.video.content_hash == two.video.content_hash != other.video.content_hash
    assert torch.equal(one.xy, two.xy)
    assert torch.equal(one.visible, two.visible)
    assert not torch.equal(one.xy, other.xy)


def test_frames_and_tracks_of_one_video_are_rendered_once(monkeypatch):
    made = []
    monkeypatch.setattr(
        dinotrack.data, "synthetic_clip", lambda **settings: made.append(1) or synthetic_clip(**settings)
    )
    path = 'synthetic:{"seed":11,"frames":4,"size":[24,20],"points":3}'
    video, clip = open_video(path, start=1), open_synthetic(path, start=2)
    assert len(made) == 1 and torch.equal(video.frames[1:], clip.video.frames) and clip.xy.shape == (3, 2, 2)
    open_synthetic(path.replace("11", "12"))
    assert len(made) == 2


def test_light_drifts_and_noise_is_mild():
    lit = synthetic_clip(3, 8, (40, 30), points=0, illumination=0.1, noise=0)
    grainy = synthetic_clip(3, 8, (40, 30), points=0, illumination=0, noise=0.008)
    still = synthetic_clip(3, 8, (40, 30), points=0, illumination=0, noise=0)
    gain = lit.video.frames.double().mean((1, 2, 3)) / still.video.frames.double().mean((1, 2, 3))
    assert gain.max() - gain.min() > 0.03
    assert (gain - 1).abs().max() < 0.11
    noise = (grainy.video.frames.double() - still.video.frames.double()).std() / 255
    assert float(noise) == pytest.approx(0.008, rel=0.15)


def test_textures_fall_off_like_natural_images():
    """The power spectrum of natural images falls roughly with the square of the frequency."""
    picture = texture(np.random.default_rng(0), (256, 256), 256, 0.3)[:, ::2, ::2].mean(0)
    power = torch.fft.fft2(picture - picture.mean()).abs().square()
    f = torch.fft.fftfreq(256)
    radius = (f[:, None] ** 2 + f[None] ** 2).sqrt()
    rings = torch.logspace(math.log10(0.015), math.log10(0.25), 9)
    levels = [power[(radius >= a) & (radius < b)].mean().log() for a, b in pairwise(rings)]
    slope = np.polyfit((rings[:-1] * rings[1:]).sqrt().log().numpy(), torch.stack(levels).numpy(), 1)[0]
    assert -3.2 < slope < -1.5
    assert picture.std() > 0.08


@pytest.mark.parametrize(
    ("frames", "size", "points"), [(2, (16, 16), 6), (3, (33, 17), 5), (2, (21, 47), 1), (4, (64, 48), 0)]
)
def test_any_size_and_length(frames, size, points):
    for seed in range(2):
        clip = synthetic_clip(seed, frames, size, points=points)
        assert clip.video.frames.shape == (frames, 3, size[1], size[0])
        assert clip.video.masks.shape == (frames, size[1], size[0])
        assert clip.xy.shape == (points, frames, 2)
        assert clip.visible.shape == (points, frames)
        assert clip.visible.sum(1).ge(2).all()


@pytest.mark.parametrize(
    "wrong",
    [{"frames": 1}, {"size": (15, 40)}, {"points": -1}, {"motion": -0.1}, {"noise": -1.0}, {"illumination": -1.0}],
)
def test_impossible_requests_are_refused(wrong):
    with pytest.raises(DinotrackError):
        synthetic_clip(**wrong)
