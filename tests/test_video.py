"""Every kind of file that holds a video, every way that one can be wrong, and the way back to mp4."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from dinotrack.data.video import load_video, save_video
from dinotrack.errors import DinotrackError

DATA = Path(__file__).parents[1].parent / "shared" / "data"
real = pytest.mark.skipif(not DATA.exists(), reason="real clips absent: ../shared/data is not there")


def gradient(count: int = 6, width: int = 64, height: int = 48) -> torch.Tensor:
    """Smooth frames that survive compression: red grows rightwards, green downwards, blue with time."""
    frames = torch.zeros(count, 3, height, width)
    frames[:, 0] = torch.linspace(0, 255, width)
    frames[:, 1] = torch.linspace(0, 255, height)[:, None]
    frames[:, 2] = torch.linspace(0, 255, count)[:, None, None]
    return frames.round().to(torch.uint8)


def encode(path: Path, frames: torch.Tensor, codec: str, pix_fmt: str, fps: int = 10) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(fps))
        stream.height, stream.width, stream.pix_fmt = frames.shape[2], frames.shape[3], pix_fmt
        for frame in frames:
            array = np.ascontiguousarray(frame.permute(1, 2, 0).numpy())
            container.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24").reformat(format=pix_fmt)))
        container.mux(stream.encode())
    return path


def folder(path: Path, frames: torch.Tensor, name: str = "{:05d}.png") -> Path:
    path.mkdir()
    for k, frame in enumerate(frames):
        Image.fromarray(frame.permute(1, 2, 0).numpy()).save(path / name.format(k))
    return path


def mask_folder(path: Path, masks: np.ndarray, mode: str = "L") -> Path:
    path.mkdir()
    for k, mask in enumerate(masks):
        image = Image.fromarray(mask)
        if mode == "P":
            image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0] + [7] * 759)
        image.save(path / f"{k:05d}.png")
    return path


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    return (a.double() - b.double()).abs().mean().item()


def expect(message: str, *args, **kwargs) -> str:
    """The one-line error of `load_video`, which must match."""
    with pytest.raises(DinotrackError, match=message) as caught:
        load_video(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("width", "height"), [(64, 48), (63, 48), (64, 47), (33, 31)])
def test_mp4_round_trip_keeps_colours_and_odd_sides_grow_by_their_edge(tmp_path: Path, width: int, height: int):
    frames = gradient(width=width, height=height)
    save_video(frames, tmp_path / "a.mp4", 12.5)
    video = load_video(tmp_path / "a.mp4")
    assert video.fps == 12.5
    assert video.path == str(tmp_path / "a.mp4")
    assert video.size == (width + width % 2, height + height % 2)
    assert difference(video.frames[:, :, :height, :width], frames) < 4
    assert difference(video.frames[:, :, height - 1, :width], video.frames[:, :, -1, :width]) < 6
    assert len(video.masks) == 0


def test_saturated_colours_survive(tmp_path: Path):
    """A wrong or missing colour matrix moves pure colours by tens of grey levels."""
    colours = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [128, 128, 128]], dtype=torch.uint8)
    frames = colours[:, :, None, None].expand(-1, -1, 32, 32)
    save_video(frames, tmp_path / "a.mp4", 25.0)
    assert (load_video(tmp_path / "a.mp4").frames.int() - frames.int()).abs().max() <= 4


def test_mp4_plays_in_browsers(tmp_path: Path):
    save_video(gradient(), tmp_path / "new" / "a.mp4", 30000 / 1001)
    with av.open(str(tmp_path / "new" / "a.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
        assert container.streams.video[0].average_rate == Fraction(30000, 1001)
    data = (tmp_path / "new" / "a.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    assert [f.name for f in (tmp_path / "new").iterdir()] == ["a.mp4"]


def test_save_video_refuses(tmp_path: Path):
    with pytest.raises(DinotrackError, match=r"ends in \.mp4"):
        save_video(gradient(), tmp_path / "a.avi", 25.0)
    with pytest.raises(DinotrackError, match="no frames"):
        save_video(gradient()[:0], tmp_path / "a.mp4", 25.0)
    with pytest.raises(DinotrackError, match="frames per second"):
        save_video(gradient(), tmp_path / "a.mp4", 0.0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt", "tolerance"),
    [
        ("a.webm", "libvpx-vp9", "yuv420p", 6),
        ("alpha.webm", "libvpx-vp9", "yuva420p", 6),
        ("a.avi", "mpeg4", "yuv420p", 8),
        ("a.mov", "libx264", "yuv420p", 6),
        ("ten_bit.mp4", "libx265", "yuv420p10le", 8),
        ("a.gif", "gif", "rgb8", 20),
        ("lossless.mkv", "ffv1", "bgr0", 0),
        ("alpha.mov", "png", "rgba", 0),
        ("grey.mkv", "ffv1", "gray", None),
    ],
)
def test_formats(tmp_path: Path, name: str, codec: str, pix_fmt: str, tolerance: float | None):
    frames = gradient()
    if tolerance is None:
        frames, tolerance = frames[:, :1].expand(-1, 3, -1, -1), 2
    video = load_video(encode(tmp_path / name, frames, codec, pix_fmt))
    assert video.fps == pytest.approx(10)
    assert difference(video.frames, frames) <= tolerance


def test_rotation_flag_turns_frames_as_players_do(tmp_path: Path):
    """A phone's upright video: landscape pixels and the matrix (0 1; -1 0), which shows them turned clockwise."""
    frames = gradient()
    save_video(frames, tmp_path / "a.mp4", 25.0)
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    at = data.index(b"tkhd") + 44
    one, minus_one, zero = (v.to_bytes(4, "big", signed=True) for v in (0x10000, -0x10000, 0))
    assert bytes(data[at : at + 20]) == one + zero * 3 + one
    data[at : at + 20] = zero + one + zero + minus_one + zero
    (tmp_path / "turned.mp4").write_bytes(data)
    assert difference(load_video(tmp_path / "turned.mp4").frames, frames.rot90(-1, (2, 3))) < 4


@pytest.mark.parametrize(("start", "stop"), [(0, 3), (2, None), (1, 4), (3, 99)])
def test_start_and_stop_are_a_slice(tmp_path: Path, start: int, stop: int | None):
    frames = gradient()
    masks = mask_folder(tmp_path / "m", (torch.arange(6)[:, None, None] == torch.arange(64)).expand(6, 48, 64).numpy())
    for path in (encode(tmp_path / "a.mkv", frames, "ffv1", "bgr0"), folder(tmp_path / "f", frames)):
        video = load_video(path, masks, start=start, stop=stop)
        assert torch.equal(video.frames, frames[start:stop])
        assert video.masks[:, 0].int().argmax(1).tolist() == list(range(6))[start:stop]


def test_folder_in_natural_order_whatever_the_endings_case(tmp_path: Path):
    (tmp_path / "f").mkdir()
    for k, ending in zip((2, 10, 1, 100), ("PNG", "png", "Png", "PNG"), strict=True):
        Image.new("RGB", (8, 4), (k, 0, 0)).save(tmp_path / "f" / f"frame{k}.{ending}", format="PNG")
    (tmp_path / "f" / "notes.txt").write_text("no frame")
    (tmp_path / "f" / "._frame1.png").write_text("what macOS leaves")
    video = load_video(tmp_path / "f")
    assert video.frames[:, 0, 0, 0].tolist() == [1, 2, 10, 100]
    assert (video.fps, video.size) == (25.0, (8, 4))
    assert load_video(tmp_path / "f", folder_fps=12).fps == 12


def test_folder_of_jpegs_turned_by_exif(tmp_path: Path):
    (tmp_path / "f").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned clockwise
    for k in range(2):
        image = Image.fromarray(gradient()[k].permute(1, 2, 0).numpy())
        image.save(tmp_path / "f" / f"{k}.JPEG", exif=exif, quality=95)
    assert difference(load_video(tmp_path / "f").frames, gradient()[:2].rot90(-1, (2, 3))) < 6


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "I;16"])
def test_folder_of_other_modes(tmp_path: Path, mode: str):
    (tmp_path / "f").mkdir()
    for k in range(2):
        if mode == "I;16":
            image = Image.fromarray(np.full((4, 8), 200 * 256 + 17, np.uint16))
        else:
            image = Image.new("RGB", (8, 4), (200, 200, 200)).convert(mode, palette=Image.Palette.ADAPTIVE)
        image.save(tmp_path / "f" / f"{k}.png")
    assert load_video(tmp_path / "f").frames.unique().tolist() == [200]


@pytest.mark.parametrize(
    ("levels", "mode", "expected"),
    [
        ([0, 127, 128, 255], "L", [False, False, True, True]),
        ([0, 1, 20, 127], "L", [False, True, True, True]),
        ([0, 1, 2, 200], "P", [False, True, True, True]),
    ],
)
def test_mask_levels(tmp_path: Path, levels: list[int], mode: str, expected: list[bool]):
    masks = np.tile(np.array(levels, np.uint8).repeat(16), (6, 48, 1))
    video = load_video(folder(tmp_path / "f", gradient()), mask_folder(tmp_path / "m", masks, mode))
    assert video.masks.shape == (6, 48, 64)
    assert video.masks[5, 40, ::16].tolist() == expected


def test_one_faint_soft_mask_does_not_become_labels(tmp_path: Path):
    """Whether values are labels is decided over the whole video, not frame by frame."""
    masks = np.zeros((6, 48, 64), np.uint8)
    masks[0], masks[1] = 100, 255
    video = load_video(folder(tmp_path / "f", gradient()), mask_folder(tmp_path / "m", masks))
    assert video.masks.flatten(1).any(1).tolist() == [False, True, False, False, False, False]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([False, True]), [False, True]),
        (np.array([0.5, 0.6], np.float32), [False, True]),
        (np.array([0, 3]), [False, True]),
        (np.array([127, 255], np.uint8), [False, True]),
        (np.array([0, 40000], np.uint16), [False, True]),
    ],
)
def test_masks_from_npy(tmp_path: Path, values: np.ndarray, expected: list[bool]):
    np.save(tmp_path / "m.npy", np.tile(values.repeat(32), (6, 48, 1)))
    video = load_video(folder(tmp_path / "f", gradient()), tmp_path / "m.npy")
    assert video.masks[3, 7, ::32].tolist() == expected


def test_sixteen_bit_and_coloured_masks(tmp_path: Path):
    frames = folder(tmp_path / "f", gradient())
    labels = np.tile(np.array([0, 3], np.uint16).repeat(32), (6, 48, 1))
    assert load_video(frames, mask_folder(tmp_path / "labels", labels)).masks[0, 0, ::32].tolist() == [False, True]
    soft = labels * 20000 + 100
    assert load_video(frames, mask_folder(tmp_path / "soft", soft)).masks[0, 0, ::32].tolist() == [False, True]
    coloured = np.zeros((6, 48, 64, 3), np.uint8)
    coloured[:, :, 32:, 2] = 255
    assert load_video(frames, mask_folder(tmp_path / "rgb", coloured)).masks[0, 0, ::32].tolist() == [False, True]


def test_what_is_no_video(tmp_path: Path):
    for name, content in {
        "a.txt": b"hello world\n" * 50,  # FFmpeg would draw it as text art
        "b.mp4": b"hello world\n" * 50,
        "c.mp4": b"",
        "d.bin": bytes(range(256)) * 40,
        "e.srt": b"1\n00:00:01,000 --> 00:00:02,000\nhi\n",
    }.items():
        (tmp_path / name).write_bytes(content)
        assert name in expect("as a video|holds no video", tmp_path / name)
    expect("no such video: .*gone.mp4", tmp_path / "gone.mp4")
    (tmp_path / "empty").mkdir()
    expect("empty holds no frames", tmp_path / "empty")


def test_too_few_frames(tmp_path: Path):
    expect(r"one has 1 frame\(s\)", folder(tmp_path / "one", gradient(1)))
    save_video(gradient(1), tmp_path / "one.mp4", 25.0)
    expect(r"one\.mp4 has 1 frame\(s\)", tmp_path / "one.mp4")
    six = folder(tmp_path / "six", gradient())
    expect(r"six has no frames in \[6, end\)", six, start=6)
    expect("no clip", six, start=-1)
    expect("no clip", six, start=3, stop=4)


def test_the_first_frame_of_another_size_is_named(tmp_path: Path):
    path = folder(tmp_path / "f", gradient())
    for k in (3, 4):
        Image.new("RGB", (32, 48)).save(path / f"{k:05d}.png")
    expect(r"00003\.png is 32x48, but .*00000\.png is 64x48", path)


def test_unreadable_pictures_are_named(tmp_path: Path):
    path, masks = folder(tmp_path / "f", gradient()), mask_folder(tmp_path / "m", np.zeros((6, 48, 64), bool))
    (masks / "00001.png").write_text("no mask")
    expect(r"cannot read the picture .*m.00001\.png", path, masks)
    whole = (path / "00002.png").read_bytes()
    (path / "00002.png").write_bytes(whole[: len(whole) // 2])
    expect(r"cannot read the picture .*00002\.png", path)


def test_masks_that_do_not_fit(tmp_path: Path):
    path = folder(tmp_path / "f", gradient())
    expect("holds 5 masks, .*has 6", path, mask_folder(tmp_path / "five", np.zeros((5, 48, 64), bool)))
    small = mask_folder(tmp_path / "small", np.zeros((6, 24, 32), bool))
    expect(r"00000\.png is 32x24, the video 64x48", path, small)
    expect("no such masks", path, tmp_path / "gone")
    (tmp_path / "none").mkdir()
    expect("none holds no", path, tmp_path / "none")
    for values, message in {
        "float": (np.full((6, 48, 64), 2.0), r"outside \[0, 1\]"),
        "flat": (np.zeros((6, 48)), r"expected \(T, H, W\)"),
        "object": (np.array([{}]), "cannot read the masks"),
        "seven": (np.zeros((7, 48, 64), bool), "holds 7 masks"),
    }.values():
        np.save(tmp_path / "m.npy", values, allow_pickle=True)
        expect(message, path, tmp_path / "m.npy")


@real
@pytest.mark.parametrize(("name", "size", "fps"), [("paragliding", (854, 480), 30), ("cat", (368, 480), 20)])
def test_real_files(name: str, size: tuple[int, int], fps: float):
    video = load_video(DATA / f"{name}.mp4", stop=8)
    assert (len(video), video.size, video.fps) == (8, size, fps)
    assert 40 < video.frames.float().mean() < 220


@real
def test_real_files_hold_all_their_frames():
    assert len(load_video(DATA / "paragliding.mp4", start=60)) == 10
    assert len(load_video(DATA / "cat.mp4")) == 87


@real
def test_real_folder_with_masks():
    video = load_video(DATA / "horsejump-high" / "video", DATA / "horsejump-high" / "masks", stop=10)
    assert (len(video), video.size) == (10, (854, 480))
    first = np.array(Image.open(DATA / "horsejump-high" / "masks" / "00000.png").convert("L"))
    assert torch.equal(video.masks[0], torch.from_numpy(first == 255))
    assert 0.01 < video.masks.float().mean() < 0.5
