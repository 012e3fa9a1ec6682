"""What is no video, and folders of pictures."""

import gzip
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.tried.cases import REFUSED, SAYS, Case
from benchmarks.tried.films import HEIGHT, WIDTH, cut, film, sound_alone, write
from benchmarks.tried.watching import counted, like


def of_nothing() -> list[Case]:
    """What is no video."""
    group, no = "no video", "cannot read .* as a video|holds no video"

    def text(name: str, content: bytes) -> Callable[[Path], Path]:
        def make(folder: Path) -> Path:
            (folder / name).write_bytes(content)
            return folder / name

        return make

    def picture(name: str) -> Callable[[Path], Path]:
        def make(folder: Path) -> Path:
            Image.new("RGB", (32, 24), (90, 60, 30)).save(folder / name)
            return folder / name

        return make

    def pipe(folder: Path) -> Path:
        os.mkfifo(folder / "a.mp4")
        return folder / "a.mp4"

    def empty(folder: Path) -> Path:
        (folder / "frames").mkdir()
        (folder / "frames" / "notes.txt").write_text("no frame")
        return folder / "frames"

    def playlist(folder: Path) -> Path:
        write(folder / "other.ts", "libx264", "yuv420p")
        (folder / "a.m3u8").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nother.ts\n#EXT-X-ENDLIST\n")
        return folder / "a.m3u8"

    def listed(folder: Path) -> Path:
        write(folder / "other.mp4", "libx264", "yuv420p")
        (folder / "a.mp4").write_text("ffconcat version 1.0\nfile other.mp4\n")
        return folder / "a.mp4"

    huge_gif = b"GIF89a" + b"\xff\xff\xff\xff\x80\x00\x00" + b"\x00" * 6
    huge_gif += 3 * (b"\x2c\x00\x00\x00\x00\xff\xff\xff\xff\x00\x02\x02\x44\x01\x00") + b"\x3b"
    srt = b"1\n00:00:01,000 --> 00:00:02,000\nhello\n"
    return [
        Case(group, "a text file", text("a.mp4", b"hello world\n" * 50), counted(0), REFUSED, no),
        Case(group, "a text file, .txt", text("a.txt", b"hello world\n" * 50), counted(0), REFUSED, no),
        Case(group, "an empty file", text("a.mp4", b""), counted(0), REFUSED, no),
        Case(group, "bytes", text("a.mp4", bytes(range(256)) * 40), counted(0), REFUSED, no),
        Case(group, "subtitles", text("a.srt", srt), counted(0), REFUSED, no),
        Case(group, "a compressed file", text("a.mp4.gz", gzip.compress(b"hello" * 99)), counted(0), REFUSED, no),
        Case(group, "a picture, png", picture("a.png"), counted(0), REFUSED, "has 1 frame"),
        Case(group, "a picture, jpg", picture("a.jpg"), counted(0), REFUSED, "has 1 frame"),
        Case(group, "sound alone", lambda folder: sound_alone(folder / "a.m4a"), counted(0), REFUSED, "holds no video"),
        Case(group, "a gif of 65535x65535", text("a.gif", huge_gif), counted(0), REFUSED, no + "|none of the"),
        Case(group, "a playlist of other files", playlist, counted(0), REFUSED, no),
        Case(group, "a list of other files, .mp4", listed, counted(0), REFUSED, no),
        Case(
            group, "a folder without pictures", empty, counted(0), REFUSED, "holds no frames; expected files ending in"
        ),
        Case(group, "no such file", lambda folder: folder / "a.mp4", counted(0), REFUSED, r"no such video: a\.mp4"),
        Case(group, "an address", lambda _: Path("http://example.org/a.mp4"), counted(0), REFUSED, "no such video"),
        Case(group, "a device", lambda _: Path("/dev/zero"), counted(0), REFUSED, "is a device or a pipe"),
        Case(group, "a pipe", pipe, counted(0), REFUSED, "is a device or a pipe"),
        Case(group, "a name of 5000 letters", lambda _: Path("a" * 5000), counted(0), REFUSED, "File name too long"),
        Case(
            group, "a name with a zero byte", lambda folder: folder / "a\0b", counted(0), REFUSED, "no name of a file"
        ),
    ]


def of_folders() -> list[Case]:
    """Folders of pictures."""
    group = "folders"

    def frames(mode: str = "RGB", ending: str = ".png") -> Callable[[Path], Path]:
        def make(folder: Path) -> Path:
            (folder / "f").mkdir()
            for number, frame in enumerate(film()):
                picture = Image.fromarray(frame.permute(1, 2, 0).numpy()).convert(mode)
                picture.save(folder / "f" / f"{number}{ending}")
            return folder / "f"

        return make

    def spoilt(spoil: Callable[[Path], Any]) -> Callable[[Path], Path]:
        def make(folder: Path) -> Path:
            path = frames()(folder)
            spoil(path / "7.png")
            return path

        return make

    def wide(path: Path) -> None:
        Image.new("RGB", (WIDTH + 1, HEIGHT)).save(path)

    def bomb(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[16:24] = (60000).to_bytes(4, "big") * 2
        path.write_bytes(data)

    def deep(folder: Path) -> Path:
        (folder / "f").mkdir()
        for number in range(2):
            Image.fromarray(np.full((HEIGHT, WIDTH), 200 * 256 + 17, np.uint16)).save(folder / "f" / f"{number}.png")
        return folder / "f"

    broken_off = "cannot read the picture f/7.png"
    return [
        Case(group, "png", frames(), like(near=0)),
        Case(group, "jpg", frames(ending=".jpg"), like()),
        Case(group, "jpg, CMYK", frames("CMYK", ".jpg"), like(near=16)),
        Case(group, "png, alpha", frames("RGBA"), like(near=0)),
        Case(group, "png, palette", frames("P"), like(near=40)),
        Case(group, "png, grey of 16 bit", deep, counted(2), SAYS, "one picture in all 2 frames"),
        Case(group, "one of another size", spoilt(wide), like(), REFUSED, r"7\.png is 65x48, but f/0\.png is 64x48"),
        Case(group, "one that is cut off", spoilt(lambda path: cut(path, 0.5)), like(), REFUSED, broken_off),
        Case(group, "one that is text", spoilt(lambda path: path.write_text("hello")), like(), REFUSED, broken_off),
        Case(group, "one that claims 60000x60000", spoilt(bomb), like(), REFUSED, "7.png"),
    ]
