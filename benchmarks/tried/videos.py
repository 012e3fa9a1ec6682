"""Containers, codecs, pixel formats, sizes, rotation and frame rates."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

from benchmarks.tried.cases import REFUSED, SAYS, Case
from benchmarks.tried.films import FRAMES, KEY, film, grey, turned, write
from benchmarks.tried.watching import counted, described, like, written
from dinotrack import load_video


def of_formats() -> list[Case]:
    """Containers, codecs and pixel formats."""
    short = {"g": str(KEY)}
    quiet = {"x265-params": f"log-level=none:keyint={KEY}"}
    av1 = {"svtav1-params": f"keyint={KEY}", "preset": "10"}
    rows: list[tuple[str, str, str, str, dict[str, Any], float]] = [
        ("mp4, H.264", "a.mp4", "libx264", "yuv420p", short, 8),
        ("mp4, H.264, 4:2:2", "a.mp4", "libx264", "yuv422p", short, 8),
        ("mp4, H.264, 4:4:4", "a.mp4", "libx264", "yuv444p", short, 8),
        ("mp4, H.264, 10 bit", "a.mp4", "libx264", "yuv420p10le", short, 8),
        ("mp4, H.264, RGB", "a.mp4", "libx264rgb", "rgb24", short, 8),
        (
            "mp4, H.264, open groups of pictures",
            "a.mp4",
            "libx264",
            "yuv420p",
            {"x264-params": "open-gop=1:keyint=4"},
            8,
        ),
        ("m4v, H.264", "a.m4v", "libx264", "yuv420p", short, 8),
        ("mov, H.264", "a.mov", "libx264", "yuv420p", short, 8),
        ("mkv, H.264", "a.mkv", "libx264", "yuv420p", short, 8),
        ("ts, H.264", "a.ts", "libx264", "yuv420p", short, 8),
        ("H.264 without a container", "a.h264", "libx264", "yuv420p", short, 8),
        ("mp4, HEVC", "a.mp4", "libx265", "yuv420p", quiet, 8),
        ("mp4, HEVC, 10 bit", "a.mp4", "libx265", "yuv420p10le", quiet, 8),
        ("mkv, HEVC, 4:2:2, 12 bit", "a.mkv", "libx265", "yuv422p12le", quiet, 8),
        ("webm, VP8", "a.webm", "libvpx", "yuv420p", short, 8),
        ("webm, VP9", "a.webm", "libvpx-vp9", "yuv420p", short, 8),
        ("webm, VP9, alpha", "a.webm", "libvpx-vp9", "yuva420p", short, 8),
        ("webm, AV1", "a.webm", "libsvtav1", "yuv420p", av1, 8),
        ("mp4, AV1, 10 bit", "a.mp4", "libsvtav1", "yuv420p10le", av1, 8),
        ("mov, ProRes 422, 10 bit", "a.mov", "prores_ks", "yuv422p10le", {}, 8),
        ("mov, ProRes 4444, alpha", "a.mov", "prores_ks", "yuva444p10le", {"profile": "4444"}, 8),
        ("mov, Animation, alpha", "a.mov", "qtrle", "argb", {}, 0),
        ("mov, PNG, alpha", "a.mov", "png", "rgba", {}, 0),
        ("mov, PNG, 16 bit", "a.mov", "png", "rgb48be", {}, 1),
        ("mov, JPEG 2000", "a.mov", "jpeg2000", "rgb24", {}, 2),
        ("mov, Motion JPEG, full range", "a.mov", "mjpeg", "yuvj420p", {}, 8),
        ("avi, MPEG-4", "a.avi", "mpeg4", "yuv420p", short, 10),
        ("avi, MPEG-4, B frames", "a.avi", "mpeg4", "yuv420p", {"bf": "2"}, 10),
        ("avi, Motion JPEG", "a.avi", "mjpeg", "yuvj420p", {}, 8),
        ("avi, uncompressed", "a.avi", "rawvideo", "bgr24", {}, 0),
        ("avi, Huffyuv", "a.avi", "huffyuv", "rgb24", {}, 0),
        ("avi, Cinepak", "a.avi", "cinepak", "rgb24", {}, 16),
        ("mkv, FFV1, RGB 16 bit", "a.mkv", "ffv1", "gbrp16le", {}, 1),
        ("mpg, MPEG-1", "a.mpg", "mpeg1video", "yuv420p", short, 10),
        ("mpg, MPEG-2", "a.mpg", "mpeg2video", "yuv420p", short, 10),
        ("mpg, MPEG-2, interlaced", "a.mpg", "mpeg2video", "yuv420p", {"flags": "+ildct+ilme"}, 10),
        ("mp4, H.264, interlaced", "a.mp4", "libx264", "yuv420p", {"flags": "+ildct+ilme", "x264-params": "tff=1"}, 8),
        ("mxf, MPEG-2", "a.mxf", "mpeg2video", "yuv420p", {}, 10),
        ("wmv, WMV 8", "a.wmv", "wmv2", "yuv420p", short, 10),
        ("flv, Sorenson", "a.flv", "flv", "yuv420p", short, 10),
        ("gif", "a.gif", "gif", "rgb8", {}, 24),
        ("apng", "a.apng", "apng", "rgba", {}, 0),
        ("y4m", "a.y4m", "wrapped_avframe", "yuv420p", {}, 4),
    ]
    cases = [
        Case("formats", name, written(file, codec, pixels, options=options), like(near=near))
        for name, file, codec, pixels, options, near in rows
    ]
    for name, codec, pixels in (("mkv, grey", "ffv1", "gray"), ("mkv, grey, 10 bit", "ffv1", "gray10le")):
        frames = grey(film())
        cases.append(Case("formats", name, written("a.mkv", codec, pixels, frames=frames), like(frames, 1)))
    return cases


def of_shapes() -> list[Case]:
    """Sizes, rotation, frame rates, tracks, names of the file that do not matter."""
    group, plain = "shapes", ("libx264", "yuv420p")
    cases = []
    for width, height in ((65, 47), (63, 48), (97, 1), (16, 9), (48, 64)):
        frames = film(width=width, height=height)
        make = written("a.mkv", "ffv1", "bgr0", frames=frames)
        cases.append(Case(group, f"{width}x{height}", make, like(frames, 0)))
    for degrees, times in ((90, -1), (180, 2), (270, 1)):

        def make_turned(folder: Path, degrees: int = degrees) -> Path:
            return turned(write(folder / "a.mp4", *plain), degrees)

        cases.append(Case(group, f"rotation flag {degrees}", make_turned, like(film().rot90(times, (2, 3)))))
    uneven = [0, 40, 80, 500, 540, 900, 1000, 1033, 1066, 2000, 2100, 4000]
    for name, codec in (("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.webm", "libvpx-vp9")):
        make = written(name, codec, "yuv420p", times=uneven, options={"bf": "0"} if codec == "libx264" else {})
        act = like(fps=11 / 4)
        cases.append(
            Case(group, f"variable frame rate, {name[2:]}", make, act, SAYS, "variable frame rate, .* 33 to 1900 ms")
        )
    late = [5000 + 40 * number for number in range(FRAMES)]
    cases += [
        Case(group, "times that begin at 5 s", written("a.mkv", *plain, times=late), like()),
        Case(group, "sound before the picture", written("a.mp4", *plain, sound="aac"), like()),
        Case(
            group, "sound before the picture, webm", written("a.webm", "libvpx-vp9", "yuv420p", sound="libopus"), like()
        ),
        Case(group, "pixels that are not square", written("a.mp4", *plain, aspect=Fraction(16, 11)), like()),
        Case(group, "two frames", written("a.mp4", *plain, frames=film()[:2]), like(film()[:2])),
        Case(group, "one frame", written("a.mp4", *plain, frames=film()[:1]), like(), REFUSED, r"a\.mp4 has 1 frame"),
        Case(
            group,
            "one static frame repeated",
            written("a.mp4", *plain, frames=film()[:1].repeat(FRAMES, 1, 1, 1)),
            counted(FRAMES),
            SAYS,
            "one picture in all 12 frames",
        ),
        Case(
            group,
            "black",
            written("a.mp4", *plain, frames=torch.zeros_like(film())),
            counted(FRAMES),
            SAYS,
            "one picture in all 12 frames",
        ),
        Case(group, "4K, scaled as it is read", written("a.mp4", *plain, frames=film(3, 3840, 2160)), scaled),
        Case(group, "a part of it", written("a.mp4", *plain), like(film()[3:7], start=3, stop=7)),
    ]
    return cases


def scaled(path: Path) -> str:
    """Frames are small, positions stay in the pixels of the file."""
    video = load_video(path, max_side=960)
    assert video.size == (3840, 2160) and video.frame_size == (960, 540) and video.max_side == 960
    away = (video.frames.double() - film(3, 960, 540).double()).abs().mean().item()
    assert away < 4, f"{away:.1f} grey levels off"
    return described(video)
