"""Frames to an H.264 file that browsers play. It lies below `data` and `visualization`, which both write videos."""

import os
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.error import FFmpegError
from av.video.reformatter import Colorspace
from av.video.stream import VideoStream
from jaxtyping import UInt8
from torch import Tensor

from dinotrack.errors import DinotrackError
from dinotrack.files import write_atomically

BT709 = 1
"""The number of BT.709 in H.264's tags for matrix, primaries and transfer curve; without tags players guess."""


def save_video(frames: UInt8[Tensor, "t 3 h w"], path: str | os.PathLike[str], fps: float, *, crf: int = 18) -> None:
    """Write frames as H.264 yuv420p mp4, its index in front; odd sides grow by one pixel that repeats the edge.

    Args:
        frames: RGB.
        path: a file ending in .mp4 (or .m4v, .mov).
        fps: frames per second.
        crf: H.264's constant rate factor; 0 keeps everything, 18 looks like the original, 51 is worst.

    Raises:
        DinotrackError: without frames, at a frame rate that is not positive, for another ending, or where the file
            cannot be written; nothing half-written stays.
    """
    target = Path(path)
    if target.suffix.lower() not in (".mp4", ".m4v", ".mov"):
        raise DinotrackError(f"cannot write a video to {target}: expected a name that ends in .mp4")
    if frames.numel() == 0:
        raise DinotrackError(f"no frames to write to {target}: got shape {tuple(frames.shape)}")
    if not 0 < fps < float("inf"):
        raise DinotrackError(f"cannot write {target} at {fps} frames per second; expected a number above 0")
    write_atomically(target, lambda name: _encode(frames, name, fps, crf, target))


def _encode(frames: UInt8[Tensor, "t 3 h w"], name: Path, fps: float, crf: int, target: Path) -> None:
    try:
        with av.open(str(name), "w", format="mp4", options={"movflags": "+faststart"}) as container:
            rate = Fraction(fps).limit_denominator(1001)
            stream = cast(VideoStream, container.add_stream("h264", rate=rate, options={"crf": str(crf)}))
            stream.height, stream.width = (side + side % 2 for side in frames.shape[-2:])
            stream.pix_fmt = "yuv420p"
            context = stream.codec_context
            context.colorspace = context.color_primaries = context.color_trc = BT709
            for frame in frames:
                rgb = av.VideoFrame.from_ndarray(_even(frame), format="rgb24")
                container.mux(stream.encode(rgb.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)))
            container.mux(stream.encode())
    except FFmpegError as error:
        raise DinotrackError(f"cannot write {target}: {error.strerror}; free space or choose another folder") from error


def _even(frame: UInt8[Tensor, "3 h w"]) -> np.ndarray:
    """(H, W, 3) with even sides, which yuv420p needs."""
    array = frame.permute(1, 2, 0).numpy(force=True)
    height, width, _ = array.shape
    return np.ascontiguousarray(np.pad(array, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge"))
