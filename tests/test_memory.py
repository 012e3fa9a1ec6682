"""How much memory there is, and where what does not fit is put."""

from pathlib import Path

import pytest
import torch

import dinotrack.memory
from dinotrack.cache import default_cache
from dinotrack.errors import DinotrackError
from dinotrack.memory import Budget, Limit, free_memory, group_rooms, held, parse_bytes


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("8GB", 8e9),
        ("512MB", 512e6),
        ("1.5GiB", 1.5 * 2**30),
        ("8e9", 8e9),
        (8e9, 8e9),
        (700, 700),
        ("2 kb", 2000),
        ("3g", 3e9),
        ("1TiB", 2**40),
        ("0", 0),
        ("64B", 64),
        (1e21, 1e21),
    ],
)
def test_sizes_are_numbers_or_texts(size: Limit, expected: float) -> None:
    assert size is not None and parse_bytes(size) == expected


@pytest.mark.parametrize("size", ["", "lots", "8XB", "-1GB", -1.0, "GB", "8GBit", "nan", "1,5GB", "inf"])
def test_other_sizes_are_refused(size: Limit) -> None:
    with pytest.raises(DinotrackError, match=r"memory_limit=.*expected bytes, such as 8GB"):
        Budget(size)


def test_a_process_holds_what_it_made_and_not_what_it_maps(tmp_path: Path) -> None:
    before = held()
    made = torch.ones(60_000_000, dtype=torch.uint8)
    assert 55e6 < held() - before < 90e6
    (tmp_path / "file").write_bytes(bytes(made.numpy().data))
    before = held()
    mapped = torch.from_file(str(tmp_path / "file"), shared=False, size=len(made), dtype=torch.uint8)
    assert int(mapped.sum(dtype=torch.long)) == len(made)  # every page was read
    assert held() - before < 20e6


def fill(folder: Path, files: dict[str, str]) -> None:
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)


def test_control_groups_bound_what_is_free(tmp_path: Path) -> None:
    """Of both versions, in a group and the groups that hold it; files that a group caches count as free."""
    second, first = tmp_path / "a" / "b", tmp_path / "memory" / "job"
    fill(second, {"memory.max": "max", "memory.current": "5", "memory.stat": "file 3\n"})
    (tmp_path / "a" / "memory.max").write_text("1000")
    (tmp_path / "a" / "memory.current").write_text("700")
    (tmp_path / "a" / "memory.stat").write_text("anon 500\nfile 200\ninactive_file 150\n")
    fill(
        first,
        {"memory.limit_in_bytes": "90", "memory.usage_in_bytes": "60", "memory.stat": "total_cache 10\ncache 5\n"},
    )
    proc = tmp_path / "cgroup"
    proc.write_text("4:memory:/job\n3:cpu,cpuacct:/other\n0::/a/b\n")
    assert group_rooms(proc, tmp_path) == [40, 500]
    assert group_rooms(tmp_path / "none", tmp_path) == []


def test_free_memory_is_the_least_of_what_bounds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0 < free_memory() < 2**50
    monkeypatch.setattr(dinotrack.memory, "group_rooms", lambda: [10**12, 1234])
    assert free_memory() == 1234
    monkeypatch.setattr(dinotrack.memory, "group_rooms", lambda: [-5])
    assert free_memory() == 0
    monkeypatch.setattr(dinotrack.memory, "group_rooms", list)
    monkeypatch.setattr(dinotrack.memory, "read_kilobytes", lambda *_: None)  # not Linux
    assert free_memory() > 2**28


@pytest.fixture
def ten_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """10 GB are free, and the process holds 1 GB."""
    monkeypatch.setattr(dinotrack.memory, "free_memory", lambda: 10 * 10**9)
    monkeypatch.setattr(dinotrack.memory, "held", lambda: 10**9)


@pytest.mark.usefixtures("ten_free")
def test_a_limit_counts_what_the_process_holds() -> None:
    rooms = {limit: Budget(limit).room() for limit in (None, "8GB", "50GB", "500MB")}
    assert rooms == {None: 10e9, "8GB": 7e9, "50GB": 10e9, "500MB": 0}
    assert Budget("8GB").share() == 3.5e9


@pytest.mark.usefixtures("ten_free")
def test_features_lie_where_the_budget_has_room() -> None:
    """ "meta" stands for a device of its own, which tests on a CPU do not have."""
    there, host = torch.device("meta"), torch.device("cpu")
    assert Budget().device_for(int(4e9), "cpu") == host
    assert Budget().device_for(int(6e9), "cpu") is None  # it would take more than half
    assert Budget("2GB").device_for(int(4e9), "cpu") is None
    assert Budget().device_for(int(4e9), there) == there
    assert Budget(features="host").device_for(int(4e9), there) == host
    assert Budget(features="host").device_for(int(6e9), there) is None
    assert Budget(features="device").device_for(int(6e9), there) == there
    assert Budget().device_for(int(6e9), there) is None
    assert Budget(1).device_for(1, "cpu") is None


@pytest.mark.usefixtures("unguarded")
def test_another_place_is_refused() -> None:
    with pytest.raises(DinotrackError, match="features_on=gpu: choose auto, device or host"):
        Budget(features="gpu")  # type: ignore[arg-type]


def test_files_lie_in_the_cache_unless_told_otherwise(tmp_path: Path) -> None:
    assert Budget().place == default_cache() and Budget(folder=tmp_path).place == tmp_path
