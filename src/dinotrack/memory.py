"""How much memory a run may take, and where what does not fit lies."""

import ctypes
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from dinotrack.cache import default_cache
from dinotrack.errors import DinotrackError

Limit = str | float | None
"""Bytes, as a number or as 8GB; None for what is free."""

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def parse_bytes(size: str | float) -> int:
    """Bytes of a number, or of a text like 8GB, 512MB, 1.5GiB or 8e9.

    Raises:
        DinotrackError: for anything else.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?(?:e\+?\d+)?)\s*([kmgt]i?)?b?\s*", str(size).lower())
    if found is None:
        raise DinotrackError(
            f"memory_limit={size}: expected bytes, such as 8GB, 512MB or 8e9, or null for what is free"
        )
    return int(float(found[1]) * UNITS[found[2] or ""])


def read_kilobytes(path: str, *names: str) -> int | None:
    """The sum, in bytes, of lines `NAME: N kB` of a file of the Linux kernel; None where there is no such file or line."""
    with suppress(OSError):
        lines = [line.split() for line in Path(path).read_text().splitlines()]
        found = [int(words[1]) * 1024 for words in lines if words and words[0].rstrip(":") in names]
        return sum(found) if found else None
    return None


def held() -> int:
    """Bytes that this process alone holds: pages of mapped files, which the system can take back, do not count."""
    return read_kilobytes("/proc/self/status", "RssAnon", "RssShmem") or 0


def give_back_freed() -> None:
    """Let the C library give back what was freed: what it keeps for later would hide what the next job takes."""
    with suppress(OSError, AttributeError):  # another library than glibc
        ctypes.CDLL(None).malloc_trim(0)


class Watch:
    """The most that this process held while the watch ran."""

    def __init__(self, every: float = 0.002) -> None:
        self.every, self.peak, self.stop = every, held(), threading.Event()
        self.thread = threading.Thread(target=self.look, daemon=True)

    def look(self) -> None:
        while not self.stop.wait(self.every):
            self.peak = max(self.peak, held())

    @classmethod
    @contextmanager
    def running(cls, every: float = 0.002) -> "Iterator[Watch]":
        """A watch that runs inside."""
        watch = cls(every)
        watch.thread.start()
        try:
            yield watch
        finally:
            watch.stop.set()
            watch.thread.join()
            watch.peak = max(watch.peak, held())


def free_memory() -> int:
    """Bytes that the system, or the control group of this process (a container's, a SLURM job's), would still give."""
    free = read_kilobytes("/proc/meminfo", "MemAvailable")
    if free is None:
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(0, min([free, *group_rooms()]))


def group_rooms(proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """What each control group that bounds this process leaves it; cached files in it, which it takes back, count as free."""
    rooms = []
    with suppress(OSError):
        for line in proc.read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            if number == "0":
                top, names = root, ("memory.max", "memory.current", "file")
            elif "memory" in controllers.split(","):
                top, names = root / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache")
            else:
                continue
            folder = top / path.strip("/")
            rooms += [room for each in (folder, *folder.parents) if (room := group_room(each, *names)) is not None]
    return rooms


def group_room(folder: Path, limit: str, usage: str, cached: str) -> int | None:
    """What one control group leaves, None where it has no limit; by the names of its files and of the line for cached ones."""
    with suppress(OSError, ValueError):
        most, used = (int((folder / name).read_text()) for name in (limit, usage))
        lines = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return most - used + sum(int(value) for name, value in lines if name == cached)
    return None


@dataclass(frozen=True)
class Budget:
    """What a run may hold in memory; what does not fit is mapped from unnamed files in `folder`.

    `limit` bounds the whole process, in bytes or as 8GB; None is what is free when it is asked for. `features` says where those of
    all frames are used on a GPU: on the "device", on the "host", or, by the device's free memory, either. One tensor is given at
    most half of what is left, or another part.
    """

    limit: Limit = None
    folder: Path | None = None
    """None: the default cache."""
    features: Literal["auto", "device", "host"] = "auto"

    def __post_init__(self) -> None:
        if self.limit is not None:
            parse_bytes(self.limit)
        if self.features not in ("auto", "device", "host"):
            raise DinotrackError(f"features_on={self.features}: choose auto, device or host")

    @property
    def place(self) -> Path:
        """Where unnamed files are made."""
        return self.folder or default_cache()

    def room(self, device: torch.device | str = "cpu") -> int:
        """Bytes that may still be taken: of a GPU those that are free, else of the machine and under the limit."""
        device = torch.device(device)
        if device.type == "cuda":
            unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
            return torch.cuda.mem_get_info(device)[0] + unused
        free = free_memory()
        return free if self.limit is None else max(0, min(free, parse_bytes(self.limit) - held()))

    def share(self, device: torch.device | str = "cpu", part: int = 2) -> int:
        """Bytes that one tensor may take: one of so many equal parts of what is left once all that is free is given back."""
        if torch.device(device).type == "cpu":
            give_back_freed()
        return self.room(device) // part

    def device_for(self, size: int, device: torch.device | str, part: int = 2) -> torch.device | None:
        """Where features of `size` bytes, used on `device`, are to lie: there, in the host's memory, or (None) in a file."""
        device = torch.device(device)
        on_device = device.type != "cpu" and self.features != "host"
        if on_device and (self.features == "device" or size <= self.share(device, part)):
            return device
        return torch.device("cpu") if size <= self.share("cpu", part) else None
