"""How long each stage of a run took, and its peak memory."""

import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

import dinotrack
from dinotrack.sealed import file_digest, write_json

LISTED = ("metrics.csv", "metrics.json")
"""Files of a run without a checksum of their own; the summary has it."""


@dataclass(frozen=True)
class Stage:
    """Seconds of wall clock; peak memory in MB of the process, and of the GPU where there is one (else 0).

    `cpu_seconds` are those of all threads, which other work on the machine changes little.
    """

    name: str
    seconds: float
    cpu_seconds: float
    peak_memory_mb: float
    peak_gpu_memory_mb: float


@dataclass
class Stages:
    """The stages of one run, in their order."""

    done: list[Stage] = field(default_factory=lambda: list[Stage]())

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure what happens inside."""
        start_peak()
        begin, begin_cpu = time.perf_counter(), time.process_time()
        yield
        seconds, cpu = time.perf_counter() - begin, time.process_time() - begin_cpu
        gpu = torch.cuda.max_memory_allocated() / 1e6 if torch.cuda.is_available() else 0.0
        self.done.append(Stage(name, round(seconds, 3), round(cpu, 3), round(peak_bytes() / 1e6, 1), round(gpu, 1)))

    def save(self, path: Path, **more: Any) -> None:
        """Write the summary as JSON, with versions and hardware, and checksums of what lies beside it."""
        kept = {name: file_digest(path.parent / name) for name in LISTED if (path.parent / name).is_file()}
        summary = {"stages": [asdict(stage) for stage in self.done], **more, "environment": environment()}
        write_json(path, {**summary, "files": kept})


def start_peak() -> None:
    """Reset the high-water marks where the system can."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_bytes() -> float:
    """High-water mark of resident memory: since `start_peak` on Linux, of the whole process elsewhere."""
    with suppress(OSError, StopIteration):
        status = Path("/proc/self/status").read_text().splitlines()
        return 1024 * float(next(line for line in status if line.startswith("VmHWM")).split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def hardware() -> str:
    """The processor's name and number of cores, and the GPU's name where there is one."""
    name = platform.processor() or platform.machine()
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line for line in lines if line.startswith("model name")).split(":", 1)[1].strip()
    cpu = f"{os.cpu_count()}x {name}"
    return f"{cpu}, {torch.cuda.get_device_name()}" if torch.cuda.is_available() else cpu


def commit() -> str:
    """The last commit that touched the library or its configs, "-dirty" where they differ; the version outside a checkout."""
    root = Path(dinotrack.__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return f"v{dinotrack.__version__}"
    asked = [["log", "-1", "--format=%h"], ["status", "--porcelain"]]
    with suppress(OSError):
        run = [
            subprocess.run(
                ["git", "-C", root, *words, "--", "src", "conf"], capture_output=True, text=True, check=False
            )
            for words in asked
        ]
        return run[0].stdout.strip() + ("-dirty" if run[1].stdout.strip() else "")
    return f"v{dinotrack.__version__}"


def environment() -> dict[str, Any]:
    """Versions and hardware, as results keep them."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "dinotrack": dinotrack.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpu_threads": torch.get_num_threads(),
        "gpu": gpu,
        "hardware": hardware(),
        "commit": commit(),
    }
