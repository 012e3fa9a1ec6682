"""The table of docs/reliability.md in its short form, by processes that know nothing of the tests' guard."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from benchmarks.faults.__main__ import PAGE, ROWS, attempt, fill, table
from benchmarks.faults.trying import Row, Try


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """All rows, by one command."""
    folder = tmp_path_factory.mktemp("faults")
    command = [sys.executable, "-m", "benchmarks.faults", "--short", "--output", str(folder / "faults.json")]
    done = subprocess.run(command, cwd=PAGE.parents[1], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1) and (folder / "faults.json").exists(), done.stderr[-2000:]  # 1: a fault did harm
    return {row["row"]: row for row in json.loads((folder / "faults.json").read_text())}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ROWS)
def test_a_fault_does_no_harm(name: str, short: dict[str, dict[str, Any]]) -> None:
    if name not in short:
        pytest.skip("this machine does not let it be tried")
    assert short[name]["tried"] > 0 and short[name]["wrong"] == []


def test_a_miss_is_called_a_miss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faults = Row("a fault", "what is held", lambda *_: iter([Try("here"), Try("there", "lost")]), 2, 2)
    monkeypatch.setattr("benchmarks.faults.__main__.row_of", lambda _: faults)
    row = {**attempt("any", True, 0, tmp_path), "commit": "abc", "hardware": "2x Test", "seed": 0}
    assert (row["tried"], row["held"], row["wrong"]) == (2, 1, ["there: lost"])
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- faults -->\nold\n<!-- /faults -->\nafter\n")
    fill(page, table([row]))
    text = page.read_text()
    assert "| 1: MISSED | 2 |" in text and "old" not in text
    assert text.startswith("before\n") and text.endswith("after\n")
