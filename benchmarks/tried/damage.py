"""Packets that are broken or missing, and files of which the end is missing."""

from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.tried.cases import REFUSED, SAYS, WORKS, Case
from benchmarks.tried.films import FRAMES, KEY, Damage, broken, cut, film, gone, half, noise, write, zeros
from benchmarks.tried.watching import Act, counted, only, written
from dinotrack import save_video


def of_damage() -> list[Case]:
    """Packets that are broken, missing or cut off."""
    group = "damaged"
    h264 = ("a.mp4", "libx264", "yuv420p", {"g": str(KEY), "bf": "0"})
    hevc = ("a.mp4", "libx265", "yuv420p", {"x265-params": f"log-level=none:keyint={KEY}:bframes=0"})
    vp9 = ("a.webm", "libvpx-vp9", "yuv420p", {"g": str(KEY), "lag-in-frames": "0"})
    vp8 = ("a.webm", "libvpx", "yuv420p", {"g": str(KEY)})
    mpeg4 = ("a.avi", "mpeg4", "yuv420p", {"g": str(KEY)})
    jpeg = ("a.avi", "mjpeg", "yuvj420p", {})
    prores = ("a.mov", "prores_ks", "yuv422p10le", {})
    ffv1 = ("a.mkv", "ffv1", "bgr0", {"g": "1"})
    png = ("a.mov", "png", "rgb24", {})
    all_but = {number: [k for k in range(FRAMES) if k != number] for number in (0, 7, FRAMES - 1)}
    rows: list[tuple[str, tuple[str, str, str, dict[str, str]], Sequence[int], Damage, Act, str]] = [
        ("H.264, one packet of zeros", h264, [7], zeros, counted(11), r"1 of 12 frames .* \(after frame 6\)"),
        ("H.264, one packet of noise", h264, [7], noise, counted(11), r"1 of 12 frames .* \(after frame 6\)"),
        ("H.264, half a packet", h264, [7], half, counted(12, 11), "is damaged"),
        ("H.264, three packets", h264, [3, 7, 8], noise, counted(9), r"3 of 12 frames .* \(after frame 2, 5\)"),
        ("H.264, the first packets", h264, [0, 1], noise, counted(10, 6), "frames cannot be decoded"),
        ("H.264, the last packet", h264, [11], noise, counted(11), "1 of 12 frames"),
        ("HEVC, one packet of noise", hevc, [7], noise, counted(11, 6), "of 12 frames cannot be decoded"),
        ("HEVC, the first packet", hevc, [0], noise, counted(11, 6), "of 12 frames cannot be decoded"),
        ("VP9, one packet of zeros", vp9, [7], zeros, counted(11), r"1 of 12 frames .* \(after frame 6\)"),
        ("VP9, the first packet", vp9, [0], noise, counted(6), r"6 of 12 frames .* \(before the first\)"),
        ("VP8, one packet of noise", vp8, [7], noise, counted(11), "1 of 12 frames"),
        ("MPEG-4, one packet of zeros", mpeg4, [7], zeros, counted(11), "1 of 12 frames"),
        ("MPEG-4, half a packet", mpeg4, [7], half, counted(12), r"1 are mended by guess \(frame 7\)"),
        (
            "Motion JPEG, one packet of noise",
            jpeg,
            [7],
            noise,
            only(all_but[7]),
            r"1 of 12 frames .* \(after frame 6\)",
        ),
        ("ProRes, one packet of noise", prores, [7], noise, only(all_but[7]), r"1 of 12 frames .* \(after frame 6\)"),
        ("ProRes, the first packet", prores, [0], noise, only(all_but[0]), r"1 of 12 frames .* \(before the first\)"),
        ("FFV1, one packet of noise", ffv1, [7], noise, only(all_but[7]), "1 of 12 frames"),
        ("PNG, one packet of noise", png, [7], noise, only(all_but[7]), r"1 of 12 frames .* \(after frame 6\)"),
        ("PNG, the last packet", png, [11], noise, only(all_but[11]), r"1 of 12 frames .* \(after frame 10\)"),
    ]
    cases = []
    for name, (file, codec, pixels, options), which, damage, act, words in rows:

        def make(
            folder: Path,
            file: str = file,
            codec: str = codec,
            pixels: str = pixels,
            options: dict[str, str] = options,
            which: Sequence[int] = which,
            damage: Damage = damage,
        ) -> Path:
            whole = write(folder / f"whole-{file}", codec, pixels, options=options)
            return broken(whole, folder / file, which, damage)

        cases.append(Case(group, name, make, act, SAYS, words))
    nothing = ("PNG, every packet", png, range(FRAMES), noise)

    def make_nothing(folder: Path) -> Path:
        return broken(write(folder / "whole.mov", "png", "rgb24"), folder / "a.mov", nothing[2], noise)

    def make_leader(folder: Path) -> Path:
        """As a recording of a broadcast begins: anywhere."""
        whole = write(folder / "whole.ts", "libx264", "yuv420p", options=h264[3])
        return broken(whole, folder / "a.ts", [0, 1, 2], gone)

    cases.append(
        Case(
            group,
            nothing[0],
            make_nothing,
            counted(0),
            REFUSED,
            r"a\.mov is damaged: none of the 12 frames can be decoded",
        )
    )
    cases.append(Case(group, "ts that begins between key frames", make_leader, counted(6), SAYS, "3 of 9 frames"))
    return cases


def of_cuts() -> list[Case]:
    """Files of which the end is missing."""
    group = "cut off"
    mp4: Callable[[Path], Path] = lambda folder: _saved(folder / "a.mp4")  # noqa: E731
    names = {
        "mp4, index in front": (mp4, 0.6, SAYS, "of 12 frames cannot be decoded"),
        "mp4, index at the end": (
            written("a.mp4", "libx264", "yuv420p"),
            0.3,
            REFUSED,
            r"cannot read a\.mp4 as a video",
        ),
        "mov, ProRes": (written("a.mov", "prores_ks", "yuv422p10le"), 0.9, REFUSED, "cannot read"),
        "mkv": (
            written("a.mkv", "libx264", "yuv420p", options={"g": "2"}),
            0.8,
            SAYS,
            r"it ends after 0\.\d+ of 0\.48 s",
        ),
        "webm": (written("a.webm", "libvpx-vp9", "yuv420p"), 0.8, SAYS, r"it ends after 0\.\d+ of 0\.4\d s"),
        "flv": (written("a.flv", "flv", "yuv420p"), 0.6, SAYS, r"it ends after 0\.\d+ of 0\.48 s"),
        "apng": (written("a.apng", "apng", "rgb24"), 0.7, SAYS, "cannot be decoded"),
        "avi": (written("a.avi", "mjpeg", "yuvj420p"), 0.8, SAYS, "of 12 frames"),
    }
    cases = []
    for name, (make, share, expected, words) in names.items():

        def make_cut(folder: Path, make: Callable[[Path], Path] = make, share: float = share) -> Path:
            return cut(make(folder), share)

        cases.append(Case(group, name, make_cut, counted(FRAMES - 1, 2), expected, words))
    for name, file, codec, pixels in (("ts", "a.ts", "libx264", "yuv420p"), ("gif", "a.gif", "gif", "rgb8")):

        def make_short(folder: Path, file: str = file, codec: str = codec, pixels: str = pixels) -> Path:
            return cut(write(folder / file, codec, pixels), 0.6)

        found = (SAYS, "or frames are missing") if name == "ts" else (WORKS, "")
        about = f"{name}, which does not say how long it was"
        cases.append(Case(group, about, make_short, counted(FRAMES - 1, 2), *found))
    for name, share, words in (("mkv", 0.5, "it ends before its first frame"), ("mp4", 0.6, "its index is cut off")):

        def make_empty(folder: Path, name: str = name, share: float = share) -> Path:
            return cut(write(folder / f"a.{name}", "libx264", "yuv420p"), share)

        cases.append(Case(group, f"{name}, before its first frame", make_empty, counted(0), REFUSED, words))
    return cases


def _saved(path: Path) -> Path:
    save_video(film(), path, 25.0, crf=0)
    return path
