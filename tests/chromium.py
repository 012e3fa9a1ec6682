"""The system's own Chromium, headless, with an empty profile and nothing of its own to ask the network for."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

PATIENCE = 120.0
"""Seconds; on a machine that does other work a page may wait long for its turn."""


def missing() -> str:
    """Why no browser can be started, or nothing."""
    if not any(map(shutil.which, NAMES)):
        return f"no Chromium: none of {', '.join(NAMES)} is installed"
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "playwright is not installed"
    return ""


@contextmanager
def chromium(profile: Path, width: int = 1280, height: int = 800, **options: Any) -> Iterator[Any]:
    """A browser whose profile is an empty folder: Playwright's context."""
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, NAMES)))
    size: Any = {"width": width, "height": height}
    with sync_playwright() as driver:
        context = driver.chromium.launch_persistent_context(
            profile, executable_path=path, headless=True, args=list(FLAGS), viewport=size, **options
        )
        context.set_default_timeout(1000 * PATIENCE)
        yield context
        context.close()


def until(page: Any, expression: str, seconds: float = PATIENCE) -> None:
    """Wait until an expression of the page is true; Playwright's own way wants `eval`, which the viewer's policy forbids."""
    end = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < end, f"{expression} is still {page.evaluate(expression)!r}"
        time.sleep(0.02)
