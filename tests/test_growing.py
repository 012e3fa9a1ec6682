"""Tensors on disk: what is written row by row is what was given, and nothing half-written stays."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

import dinotrack.growing
import dinotrack.mapped
from dinotrack.backbones import DenseSift, extract_features
from dinotrack.cache import Entry
from dinotrack.errors import DinotrackError
from dinotrack.feature_pass import FeaturePass
from dinotrack.growing import FeatureEntry, Rows, placed
from dinotrack.memory import Budget
from dinotrack.sealed import forget_checks
from dinotrack.structs import FeatureMap, Video
from test_structs import structs

NONE = Budget(1)
"""No room for anything."""
ABOUT = {"stride": 7.0, "offset": 3.5, "size": (30, 24)}


def entry_at(path: Path) -> Entry:
    return Entry(path, "features", {})


def rows(count: int = 7, dtype: torch.dtype = torch.float16) -> Tensor:
    return (100 * torch.rand(count, 3, 2, 5, generator=torch.Generator().manual_seed(count))).to(dtype)


def files_of(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16, torch.bool, torch.long])
@pytest.mark.parametrize("step", [1, 3, 7])
def test_rows_are_what_was_given_in_memory_and_on_disk(dtype: torch.dtype, step: int, tmp_path: Path) -> None:
    given = rows(dtype=dtype)
    for budget in (Budget(folder=tmp_path), Budget(1, tmp_path)):
        kept = Rows(len(given), budget)
        for part in given.split(step):
            kept.add(part.contiguous(memory_format=torch.channels_last))
        found = kept.done()
        assert found.dtype == dtype and found.is_contiguous() and torch.equal(found, given)
        assert (kept.file is not None) == (budget.limit is not None)
        assert files_of(tmp_path) == []  # it has no name even while it is in use
        found[0] = 1  # private to this process


def test_rows_take_the_systems_folder_where_the_budgets_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    kept = Rows(2, Budget(1, tmp_path / "file"))
    kept.add(rows(2))
    assert torch.equal(kept.done(), rows(2))


class Full:
    """A file on a full disk."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def write(self, _: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def write(path: Path, parts: list[Tensor], *, full: bool = False, error: Exception | None = None) -> None:
    """An entry from parts, on a disk that may be full, with an error of something else after them."""
    with FeatureEntry(entry_at(path), sum(map(len, parts)), **ABOUT) as entry:
        if full:
            entry.file = Full(entry.file)  # type: ignore[assignment]
        for part in parts:
            entry.add(part)
        if error:
            raise error
        entry.done()


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    line = r"cannot write .*: No space left on device; free space or choose another folder"
    kept = Rows(4, Budget(1, tmp_path))
    kept.add(rows(1))
    kept.file = Full(kept.file)  # type: ignore[assignment]
    with pytest.raises(DinotrackError, match=line) as caught:
        kept.add(rows(3))
    assert "\n" not in str(caught.value)
    with pytest.raises(DinotrackError, match=line):
        write(tmp_path / "f.safetensors", [rows()], full=True)
    assert files_of(tmp_path) == []


def test_a_failed_rename_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "f.safetensors").mkdir()
    with pytest.raises(DinotrackError, match=r"cannot write .*f\.safetensors: Is a directory; free space"):
        write(tmp_path / "f.safetensors", [rows()])
    assert files_of(tmp_path) == []


def test_an_entry_is_the_file_that_saving_writes(tmp_path: Path) -> None:
    whole = FeatureMap(rows(), **ABOUT)  # type: ignore[arg-type]
    whole.save(tmp_path / "saved.safetensors")
    with FeatureEntry(entry_at(tmp_path / "new" / "entry.safetensors"), len(whole), **ABOUT) as entry:
        for part in whole.values.split(2):
            assert files_of(tmp_path / "new") != ["entry.safetensors"]
            entry.add(part)
        mapped = entry.done()
    assert torch.equal(mapped, whole.values) and files_of(tmp_path / "new") == ["entry.safetensors"]
    saved, streamed = tmp_path / "saved.safetensors", tmp_path / "new" / "entry.safetensors"
    forget_checks()  # the checksum that was made of the parts is right
    loaded = FeatureMap.load(streamed)
    assert torch.equal(loaded.values, whole.values) and (loaded.grid, loaded.size) == (whole.grid, whole.size)
    assert torch.equal(safetensors.torch.load_file(streamed)["values"], whole.values)
    with safetensors.safe_open(saved, "pt") as one, safetensors.safe_open(streamed, "pt") as other:
        first, second = ({**file.metadata(), "checksum": ""} for file in (one, other))  # of headers in another order
        assert first == second
    head = int.from_bytes(streamed.read_bytes()[:8], "little")
    assert head % 8 == 0 and streamed.stat().st_size == 8 + head + whole.values.nbytes


@pytest.mark.parametrize("place", [20, 200, -1])
def test_a_byte_that_changes_in_a_streamed_entry_is_found(place: int, tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    write(path, list(rows().split(2)))
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    forget_checks()
    with pytest.raises(DinotrackError, match="is not a readable FeatureMap file"):
        FeatureMap.load(path)


def test_an_entry_that_is_not_finished_is_taken_back(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"^out of memory$"):  # of the network: no word about the disk
        write(tmp_path / "f.safetensors", [rows()], error=RuntimeError("out of memory"))
    assert files_of(tmp_path) == []


def test_what_a_killed_process_left_is_no_entry_and_goes_with_the_next(tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    child = os.fork()
    if not child:
        with FeatureEntry(entry_at(path), 400, **ABOUT) as entry:
            entry.add(rows(300))
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    (left,) = files_of(tmp_path)
    assert left.startswith(".f-") and not path.exists()
    write(path, [rows()])
    assert files_of(tmp_path) == ["f.safetensors"]


@pytest.mark.parametrize("index", range(len(structs())))
def test_large_files_are_mapped_as_small_ones_are_read(
    index: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    struct, path = structs()[index], tmp_path / "struct.safetensors"
    struct.save(path)
    small = type(struct).load(path)
    monkeypatch.setattr(dinotrack.mapped, "LARGE", 0)
    large = type(struct).load(path)
    for name, value in vars(small).items():
        other = getattr(large, name)
        assert torch.equal(value, other) and value.dtype == other.dtype if isinstance(value, Tensor) else value == other
    content = path.read_bytes()
    for damaged in (content[:-3], b"", content[:40], b"\xff" * 200):
        path.write_bytes(damaged)
        with pytest.raises(DinotrackError, match="delete it to build it again"):
            type(struct).load(path)


def memory_and_swap() -> int:
    lines = [line.split() for line in Path("/proc/meminfo").read_text().splitlines()]
    return sum(1024 * int(words[1]) for words in lines if words[0] in ("MemTotal:", "SwapTotal:"))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux refuses such maps")
def test_features_may_be_larger_than_the_machines_memory(tmp_path: Path) -> None:
    """A file of holes: it takes no space, and the system would refuse a map that reserves memory for it."""
    shape = (memory_and_swap() // (2 * 2**20) + 100, 2**20, 1, 1)
    path = tmp_path / "f.safetensors"
    with FeatureEntry(entry_at(path), shape[0], **ABOUT) as entry:
        assert entry.file is not None
        entry.head = dinotrack.mapped.safetensors_head("values", torch.float16, shape, entry.metadata)
        entry.file.write(entry.head)
        entry.file.truncate(entry.file.tell() + 2 * shape[0] * shape[1])
        values = entry.done()
    assert values.shape == shape and float(values[-1].sum()) == 0
    with pytest.raises(RuntimeError, match="Cannot allocate memory"):
        torch.UntypedStorage.from_file(str(path), False, path.stat().st_size)


def test_features_in_the_cache_are_those_in_memory_to_the_bit(tmp_path: Path, rng: torch.Generator) -> None:
    video = Video(torch.randint(0, 256, (9, 3, 40, 56), generator=rng, dtype=torch.uint8))
    for chunk in (1, 4, 9):
        backbone = DenseSift(stride=4)
        whole = extract_features(backbone, video.frames, chunk=chunk)
        budgets = (Budget(), Budget(1, tmp_path))
        passes = [
            FeaturePass(video, video.frames, backbone, tmp_path / f"{chunk}{n}", chunk=chunk, budget=b)
            for n, b in enumerate(budgets)
        ]
        for found in [
            extract_features(backbone, video.frames, budget=NONE, chunk=chunk),
            *(p.features() for p in passes),
        ]:
            assert torch.equal(found.values, whole.values) and (found.grid, found.size) == (whole.grid, whole.size)


def test_features_go_to_a_device_that_has_room_for_them() -> None:
    """ "meta" stands for a device of its own."""
    features = FeatureMap(rows(), **ABOUT)  # type: ignore[arg-type]
    assert placed(features, "cpu", NONE).values is features.values
    assert placed(features, "meta").values.device.type == "meta"
    assert placed(features, "meta", NONE) is placed(features, "meta", Budget(features="host")) is features
    assert placed(features, "meta", Budget(1, features="device")).values.device.type == "meta"
    there = placed(features, "meta")
    assert placed(there, "meta", Budget(features="host")).values.device.type == "meta"  # what is there stays


PEAK = """
import sys, threading, time, torch
from pathlib import Path
from dinotrack.feature_pass import FeaturePass
from dinotrack.memory import held
from dinotrack.structs import Grid, Video

class Backbone:
    channels, stride, grid, settings = 64, 1, Grid(1.0, 0.5), {"kind": "grey"}
    def __call__(self, images):
        return images.mean(1, keepdim=True).expand(-1, 64, -1, -1)
    def to(self, device): return self
    def final(self): return self

def watch():
    global peak
    while going:
        peak = max(peak, held())
        time.sleep(0.002)

for count in (8, 50, 150):  # the first one for what is loaded on first use
    frames = torch.randint(0, 256, (count, 3, 64, 64), dtype=torch.uint8)
    made = FeaturePass(Video(frames), frames, Backbone(), Path(sys.argv[1]) / str(count))
    going, peak, start = True, 0, held()
    thread = threading.Thread(target=watch)
    thread.start()
    features = made.features(saliency=True)
    made.saliency(features)
    going = False
    thread.join()
    print(peak - start, features.values.nbytes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells anonymous memory from mapped files")
def test_memory_of_extraction_does_not_grow_with_the_video(tmp_path: Path) -> None:
    """Anonymous memory at T and at 3 T frames, in a process of its own; saliency masks are read from the map too."""
    process = subprocess.run([sys.executable, "-c", PEAK, str(tmp_path)], capture_output=True, text=True, check=True)
    _, few, many = ([int(word) for word in line.split()] for line in process.stdout.splitlines())
    assert (few[1], many[1]) == (25 * 2**20, 75 * 2**20)
    assert many[0] - few[0] < 0.4 * (many[1] - few[1]) and many[0] < 0.4 * many[1]
