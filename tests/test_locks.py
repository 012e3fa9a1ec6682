"""The cache among processes: one builds, the others wait; a killed one leaves no lock; a read-only folder can be read."""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from dinotrack.cache import Entry, build_or_load, locked
from dinotrack.errors import DinotrackError
from dinotrack.feature_pass import Masks

FORK = multiprocessing.get_context("fork")  # a fresh process would import torch first
Start = Callable[[str], Any]


def work(folder: Path, name: str) -> None:
    """What a process does: once it may go, ask for the entry, which takes some time to build."""

    def build() -> Masks:
        (folder / f"{name}.built").touch()
        while "hang" in name:
            time.sleep(0.01)
        time.sleep(0.3)  # long enough for the other to come
        return Masks(torch.arange(60).view(3, 4, 5) % 7 == 0)

    (folder / f"{name}.ready").touch()
    while not (folder / "go").exists():
        time.sleep(0.001)
    found = build_or_load(Masks, entry_at(folder), build)
    (folder / f"{name}.found").write_text(str(int(found.values.sum())))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a process of a name, and waits until it is ready for the file "go"; none outlives the test."""
    with ExitStack() as stack:

        def begin(name: str) -> Any:
            process = FORK.Process(target=work, args=(tmp_path, name))
            process.start()
            stack.callback(process.kill)
            wait_for(tmp_path / f"{name}.ready", process)
            return process

        yield begin


def entry_at(folder: Path) -> Entry:
    return Entry(folder / "entry.safetensors", "entry", {})


def wait_for(path: Path, process: Any) -> None:
    while not path.exists() and process.is_alive():
        time.sleep(0.01)
    assert path.exists()


def test_of_two_processes_one_builds_and_both_have_the_entry(tmp_path: Path, start: Start) -> None:
    processes = [start(name) for name in ("first", "second")]
    (tmp_path / "go").touch()
    for process in processes:
        process.join()
    answers = [(tmp_path / f"{name}.found").read_text() for name in ("first", "second")]
    assert answers == ["9", "9"] and [process.exitcode for process in processes] == [0, 0]
    assert len(list(tmp_path.glob("*.built"))) == 1
    assert int(Masks.load(tmp_path / "entry.safetensors").values.sum()) == 9


def test_a_killed_builder_blocks_nobody(tmp_path: Path, start: Start) -> None:
    process = start("hang")
    (tmp_path / "go").touch()
    wait_for(tmp_path / "hang.built", process)  # it holds the lock
    process.kill()
    process.join()
    assert (tmp_path / "entry.lock").exists() and not (tmp_path / "entry.safetensors").exists()
    built = build_or_load(Masks, entry_at(tmp_path), lambda: Masks(torch.ones(1, 1, 1, dtype=torch.bool)))
    assert built.values.all() and (tmp_path / "entry.safetensors").exists()


def test_an_entry_that_is_there_is_read_without_a_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "entry.safetensors"
    Masks(torch.ones(1, 2, 2, dtype=torch.bool)).save(path)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a read-only folder has no room for a lock")

    monkeypatch.setattr("dinotrack.cache.locked", refuse)
    assert build_or_load(Masks, entry_at(tmp_path), lambda: pytest.fail("built again")).values.all()
    assert [file.name for file in tmp_path.iterdir()] == ["entry.safetensors"]


def test_a_folder_that_takes_no_lock_gets_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    line = r"cannot lock .*entry\.safetensors: .*choose another folder"
    with pytest.raises(DinotrackError, match=line) as caught, locked(entry_at(tmp_path / "file")):
        pytest.fail("locked")
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes to read-only folders")
def test_a_read_only_folder_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(DinotrackError, match="Permission denied"), locked(entry_at(tmp_path)):
            pytest.fail("locked")
    finally:
        tmp_path.chmod(0o700)
