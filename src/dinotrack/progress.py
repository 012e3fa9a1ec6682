"""Progress bars: a callable `(items, description) -> items` that shows how far an iteration is."""

from collections.abc import Callable, Iterable, Sized
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import (
    Progress as RichProgress,
)

Progress = Callable[[Iterable[Any], str], Iterable[Any]]


def silent(items: Iterable[Any], description: str) -> Iterable[Any]:
    """Show nothing: what library functions do unless told otherwise."""
    return items


def make_bar() -> RichProgress:
    """The bar that every long job of the commands shows, on standard error."""
    columns = (
        TextColumn("{task.description:<18}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return RichProgress(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True))


def shown(items: Iterable[Any], description: str) -> Iterable[Any]:
    """Show a bar on standard error: what the commands pass."""
    with make_bar() as bar:
        task = bar.add_task(description, total=len(items) if isinstance(items, Sized) else None, note="")
        for item in items:
            yield item
            bar.advance(task)
