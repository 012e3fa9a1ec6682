"""The linter's contracts name every module, so that a new one is held to them too."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
ABOVE = {"training", "cli", "tools"}
"""Who may know Lightning and Hydra (docs/design.md, rule 5)."""


def contracts() -> list[dict[str, Any]]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]


def modules() -> set[str]:
    """What lies in the package, but for the package itself."""
    paths = [*(ROOT / "src" / "dinotrack").glob("*.py"), *(ROOT / "src" / "dinotrack").glob("*/__init__.py")]
    names = {path.parent.name if path.name == "__init__.py" else path.stem for path in paths}
    return names - {"dinotrack", "__main__"}


@pytest.mark.parametrize(("kind", "rest"), [("forbidden", ABOVE), ("layers", set[str]())])
def test_the_linter_holds_every_module(kind: str, rest: set[str]) -> None:
    [contract] = [each for each in contracts() if each["type"] == kind]
    listed = contract.get("source_modules") or [name for row in contract["layers"] for name in row.split("|")]
    named = [name.strip().removeprefix("dinotrack.") for name in listed]
    assert sorted(named) == sorted(modules() - rest)
