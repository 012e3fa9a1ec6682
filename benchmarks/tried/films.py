"""Small films, and how they are written, broken and cut: whatever FFmpeg can write."""

import random
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

FRAMES, WIDTH, HEIGHT = 12, 64, 48
KEY = 6
"""Every so many frames a key frame, where the codec can be told."""


def film(count: int = FRAMES, width: int = WIDTH, height: int = HEIGHT) -> UInt8[Tensor, "t 3 h w"]:
    """Smooth pictures that survive compression; each frame has its own blue, so that one out of place is noticed."""
    frames = torch.zeros(count, 3, height, width)
    frames[:, 0] = torch.linspace(0, 255, width)
    frames[:, 1] = torch.linspace(0, 255, height)[:, None]
    frames[:, 2] = torch.linspace(20, 235, count)[:, None, None]
    return frames.round().to(torch.uint8)


def grey(frames: UInt8[Tensor, "t 3 h w"]) -> UInt8[Tensor, "t 3 h w"]:
    """What is left of it in a file without colours: blue alone, which tells frames apart."""
    return frames[:, 2:].expand(-1, 3, -1, -1).contiguous()


def write(
    path: Path,
    codec: str,
    pixels: str,
    frames: UInt8[Tensor, "t 3 h w"] | None = None,
    *,
    options: dict[str, str] | None = None,
    rate: int = 25,
    times: Sequence[int] = (),
    sound: str = "",
    aspect: Fraction | None = None,
) -> Path:
    """A video file; `times` in milliseconds make its rate variable, `sound` puts a silent track of that codec first."""
    frames = film() if frames is None else frames
    with av.open(str(path), "w") as container:
        track = cast(av.AudioStream, container.add_stream(sound, rate=48000)) if sound else None
        stream = cast(av.VideoStream, container.add_stream(codec, rate=Fraction(rate), options=options or {}))
        stream.height, stream.width, stream.pix_fmt = frames.shape[2], frames.shape[3], pixels
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        if track:
            for packet in silence(track):
                container.mux(packet)
        for number, picture in enumerate(pictures(frames, pixels)):
            if times:
                picture.pts, picture.time_base = times[number], Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def silence(track: av.AudioStream, pieces: int = 8, length: int = 960) -> list[av.Packet]:
    """Encoded."""
    packets = []
    for number in range(pieces):
        piece = av.AudioFrame.from_ndarray(np.zeros((2, length), np.float32), format="fltp", layout="stereo")
        piece.rate, piece.pts = 48000, number * length
        packets += track.encode(piece)
    return packets + track.encode()


def sound_alone(path: Path) -> Path:
    """A file without a picture."""
    with av.open(str(path), "w") as container:
        for packet in silence(cast(av.AudioStream, container.add_stream("aac", rate=48000))):
            container.mux(packet)
    return path


def pictures(frames: UInt8[Tensor, "t 3 h w"], pixels: str) -> list[av.VideoFrame]:
    arrays = [np.ascontiguousarray(frame.permute(1, 2, 0).numpy()) for frame in frames]
    return [av.VideoFrame.from_ndarray(array, format="rgb24").reformat(format=pixels) for array in arrays]


Damage = Callable[[bytes], bytes | None]


def zeros(data: bytes) -> bytes:
    return bytes(len(data))


def noise(data: bytes) -> bytes:
    return random.Random(len(data)).randbytes(len(data))


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def gone(data: bytes) -> None:
    return None


def broken(source: Path, target: Path, which: Sequence[int], damage: Damage) -> Path:
    """The file with some of its video's packets, counted as they are stored, damaged or taken out."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = old.streams.video[0]
        place = new.add_stream_from_template(stream)
        number = -1
        for packet in old.demux(stream):
            if packet.dts is None:
                continue
            number += 1
            data = damage(bytes(packet)) if number in which else bytes(packet)
            if data is None:
                continue
            copy: Any = av.Packet(data)
            copy.pts, copy.dts, copy.time_base, copy.duration = (
                packet.pts,
                packet.dts,
                packet.time_base,
                packet.duration,
            )
            copy.is_keyframe, copy.stream = packet.is_keyframe, place
            new.mux(copy)
    return target


def cut(path: Path, share: float) -> Path:
    """The first part of a file, in its place."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def turned(path: Path, degrees: int) -> Path:
    """An mp4 whose matrix has players turn it clockwise, in its place."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44
    one, minus, zero = (value.to_bytes(4, "big", signed=True) for value in (0x10000, -0x10000, 0))
    rows = {90: (zero, one, minus, zero), 180: (minus, zero, zero, minus), 270: (zero, minus, one, zero)}[degrees]
    a, b, c, d = rows
    data[at : at + 20] = a + b + zero + c + d
    path.write_bytes(data)
    return path
