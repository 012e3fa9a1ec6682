"""Settings that were one thing and are another."""

from collections.abc import Mapping
from typing import Any


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The names whose values differ, or that one of them lacks; sorted."""
    names = {*before, *now}
    return sorted(name for name in names if before.get(name, "absent") != now.get(name, "absent"))


def in_words(before: Mapping[str, Any], now: Mapping[str, Any], most: int = 4) -> str:
    """The first few differences: "gamma was 1.5, is 2.0"."""
    names = differing(before, now)[:most]
    return "; ".join(f"{name} was {before.get(name, 'absent')}, is {now.get(name, 'absent')}" for name in names)
