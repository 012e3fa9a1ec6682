"""What is written under a temporary name first, and what becomes of the temporary files of killed processes."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from dinotrack.errors import DinotrackError
from dinotrack.files import leftovers, remove_leftovers, temporary_beside, write_atomically


def left_by(path: Path, number: int, machine: str = "") -> Path:
    """A temporary file of `path` that a process of that number left."""
    ours = temporary_beside(path)
    mine, _, code = ours.stem.rsplit("-", 3)[1:]
    left = ours.with_name(f".{path.stem}-{machine or mine}-{number}-{code}{path.suffix}")
    left.write_text("half")
    return left


@pytest.fixture
def dead() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_writing_again_removes_what_dead_processes_left(tmp_path: Path, dead: int) -> None:
    path = tmp_path / "a-b.json"
    gone = left_by(path, dead)
    kept = {left_by(path, os.getpid()), left_by(path, dead, "abcdef"), left_by(tmp_path / "a.json", dead)}
    assert gone in leftovers(path) and len(leftovers(path)) == 3
    write_atomically(path, lambda name: name.write_text("whole"))
    assert {*tmp_path.iterdir()} == {path, *kept}
    remove_leftovers(path, alone=True)
    assert len([*tmp_path.iterdir()]) == 2


def test_a_disk_that_is_found_full_at_the_end_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "a.json"
    write_atomically(path, lambda name: name.write_text("old"))
    monkeypatch.setattr("dinotrack.files.os.fsync", full)
    with pytest.raises(DinotrackError, match=r"cannot write .*a\.json: No space left on device; free space"):
        write_atomically(path, lambda name: name.write_text("new"))
    assert path.read_text() == "old" and [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("No space left on device"),
    ],
)
def test_a_full_disk_is_called_the_same_whoever_finds_it(error: Exception, tmp_path: Path) -> None:
    def write(_: Path) -> None:
        raise error

    line = r"^cannot write .*a\.json: No space left on device; free space or choose another folder$"
    with pytest.raises(DinotrackError, match=line):
        write_atomically(tmp_path / "a.json", write)


def test_others_may_read_what_the_users_umask_lets_them(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "a.safetensors", lambda name: save_file({"x": torch.zeros(1)}, name))
    finally:
        os.umask(before)
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o640
