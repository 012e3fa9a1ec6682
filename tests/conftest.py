"""What all tests share: few threads, and a cache of their own."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# Small tensors on a shared machine: more threads only cost.
torch.set_num_threads(min(2, os.cpu_count() or 1))


@pytest.fixture(scope="session", autouse=True)
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The session's $DINOTRACK_CACHE; the user's own is never touched."""
    folder = tmp_path_factory.mktemp("dinotrack-cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DINOTRACK_CACHE", str(folder))
        yield folder


@pytest.fixture
def rng() -> torch.Generator:
    """Random numbers that are the same in every run."""
    return torch.Generator().manual_seed(0)
