"""Frames of a video file by FFmpeg: as a player shows them; what cannot be decoded is left out and said in one line.

FFmpeg is handed the open file and may open nothing else: to it a name can be an address, and a playlist from a stranger names
files and addresses of the stranger's choice.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice, pairwise
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from jaxtyping import UInt8

from dinotrack.data.pictures import MOST_PIXELS
from dinotrack.errors import DinotrackError, reason_of

log = logging.getLogger(__name__)

TEXT_ART = ("ansi", "bintext", "xbin", "idf")
"""Codecs by which FFmpeg would make a picture of any text file."""
BOUNDS = {"protocol_whitelist": "none", "max_pixels": str(MOST_PIXELS)}
EXPECTED = "expected a whole video file that FFmpeg plays"


@dataclass
class Decoded:
    """What became of a file's packets; frames are counted from 0 as they come."""

    packets: int = 0
    frames: int = 0
    refused: list[int] = field(default_factory=list)
    """How many frames had come when each packet was refused."""
    mended: list[int] = field(default_factory=list)
    """Frames of which the decoder says that it guessed a part."""
    seconds: float = 0.0
    """When the last packet ends, of any stream."""
    whole: bool = False
    """Whether the file was read to its end."""
    halves: bool = False
    """Whether it is interlaced, so that one frame may lie in two packets."""

    def lost(self, promised: int) -> int:
        """Frames that the file has, or says that it has, and that did not come."""
        absent = max(self.packets, promised) - self.frames if self.whole and not self.halves else 0
        return max(absent, len(self.refused))


class VideoFile:
    """Frames [start, stop) of a file, one by one; `fps` is known once they have been read.

    Every frame comes as it is stored, whatever its time: of a variable frame rate `fps` is the mean. Pixels that are not square
    stay as they are stored.
    """

    def __init__(self, path: Path, start: int, stop: int | None) -> None:
        self.path, self.start, self.stop = path, start, stop
        self.fps, self.expected = 0.0, 0

    def name(self, number: int) -> str:
        """What messages call a frame."""
        return f"frame {self.start + number} of {self.path}"

    def __iter__(self) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
        """The frames in RGB.

        Raises:
            DinotrackError: for a file that is no video, or of which nothing can be decoded.
        """
        try:
            with (
                self.path.open("rb") as file,
                av.open(file, "r", options=BOUNDS, metadata_errors="replace") as container,
            ):
                stream = _video_stream(container, self.path)
                self.expected = self._expect(container, stream)
                done, times = Decoded(), list[float | None]()
                for frame in islice(_decode(container, stream, done), self.start, self.stop):
                    times.append(frame.time)
                    yield _upright(frame)
                intact = self._say(done, container, stream)
                self.fps = self._rate(times, float(stream.average_rate or 0), intact)
        except (FFmpegError, OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or reason_of(error)
            raise DinotrackError(f"cannot read {self.path} as a video ({reason}); {EXPECTED}") from error

    def _expect(self, container: InputContainer, stream: av.VideoStream) -> int:
        """About how many frames there will be, 0 where the file does not say."""
        length = (container.duration or 0) / av.time_base
        count = stream.frames or int(length * float(stream.average_rate or 0))
        return max(0, min(count, count if self.stop is None else self.stop) - self.start)

    def _say(self, done: Decoded, container: InputContainer, stream: av.VideoStream) -> bool:
        """One line about what did not come as it should; whether all is well."""
        lost = done.lost(stream.frames)
        total = max(done.packets, done.frames + lost, stream.frames)
        length = (
            container.duration or 0
        ) / av.time_base  # Matroska's counts from 0, also where the first frame does not
        cut = done.whole and 0 < done.seconds < length - max(0.1, 2 / float(stream.average_rate or 25))
        if done.whole and not done.frames:
            found = f"none of the {total} frames can be decoded" if total else "it ends before its first frame"
            raise DinotrackError(f"{self.path} is damaged: {found}; get the file again")
        parts = []
        if lost:
            parts.append(f"{lost} of {total} frames cannot be decoded and are left out{_places(done)}")
        if done.mended:
            parts.append(f"{len(done.mended)} are mended by guess (frame {_some(done.mended)})")
        if cut:
            parts.append(f"it ends after {done.seconds:.2f} of {length:.2f} s")
        if parts:
            also = "; frames from there to the next key frame may show traces of it" if lost or done.mended else ""
            log.warning("%s is damaged: %s%s", self.path, ", ".join(parts), also)
        return not parts

    def _rate(self, times: list[float | None], said: float, intact: bool, slack: float = 0.011) -> float:
        """Frames per second: what the file says, or the mean where the times between frames differ by more than half."""
        known = [time for time in times if time is not None]
        gaps = [after - before for before, after in pairwise(known)]
        if len(known) < len(times) or min(gaps, default=0.0) <= 0:
            return said
        mean = len(gaps) / (known[-1] - known[0])
        if not intact or max(gaps) <= 1.5 * min(gaps) + slack:  # containers round to as much as 10 ms
            return said or mean
        span = f"{1000 * min(gaps):.0f} to {1000 * max(gaps):.0f} ms from frame to frame"
        log.warning(
            "%s has a variable frame rate, or frames are missing, %s: all that are there are read, fps=%.4g is their mean",
            self.path,
            span,
            mean,
        )
        return mean


def _video_stream(container: InputContainer, path: Path) -> av.VideoStream:
    """The video that a player would take, set to be decoded exactly."""
    if not len(container.streams):
        raise DinotrackError(f"{path} is damaged: its index is cut off or empty; get the file again")
    stream = container.streams.best("video")
    if not isinstance(stream, av.VideoStream):
        raise DinotrackError(f"{path} holds no video; expected a video file or a folder of jpg or png frames")
    if stream.codec_context is None:
        raise DinotrackError(f"{path} has a video whose codec FFmpeg cannot decode here; convert it, to H.264 for one")
    if stream.codec_context.name in TEXT_ART:
        raise DinotrackError(f"{path} holds no video; expected a video file or a folder of jpg or png frames")
    # Frames in parallel would lose those around a broken one, and at the end of a file without a word.
    stream.thread_type = "SLICE"
    return stream


def _decode(container: InputContainer, stream: av.VideoStream, done: Decoded) -> Iterator[av.VideoFrame]:
    """Every frame that can be decoded."""
    for packet in _packets(container, done):
        if packet.stream.index != stream.index:
            continue
        done.packets += bool(packet.size) and not packet.is_discard
        try:
            frames = packet.decode()
        except FFmpegError:
            done.refused.append(done.frames)
            continue
        for frame in frames:
            assert isinstance(frame, av.VideoFrame)
            if frame.is_corrupt:
                done.mended.append(done.frames)
            done.halves |= frame.interlaced_frame
            done.frames += 1
            yield frame
    done.whole = True


def _packets(container: InputContainer, done: Decoded) -> Iterator[av.Packet]:
    """All packets; a file that breaks off ends there, once there was anything."""
    try:
        for packet in container.demux():
            at = packet.dts if packet.pts is None else packet.pts
            if at is not None:
                done.seconds = max(done.seconds, float((at + (packet.duration or 0)) * packet.time_base))
            yield packet
    except FFmpegError:
        if not done.frames:
            raise
        done.refused.append(done.frames)


def _places(done: Decoded) -> str:
    """Where packets were refused, if that is known."""
    after = [number - 1 for number in sorted(set(done.refused)) if number]
    places = ["before the first"] * (0 in done.refused) + [f"after frame {_some(after)}"] * bool(after)
    return f" ({' and '.join(places)})" if places else ""


def _some(numbers: list[int], most: int = 5) -> str:
    return ", ".join(map(str, numbers[:most])) + (", ..." if len(numbers) > most else "")


def _upright(frame: av.VideoFrame) -> UInt8[np.ndarray, "h w 3"]:
    """RGB, turned as the file's display matrix says; `rotation` counts degrees counter-clockwise, as rot90 does."""
    return np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
