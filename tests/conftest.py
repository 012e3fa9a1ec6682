"""What all tests share: one thread, a cache of their own, and a way around the guard."""

import copy
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import hydra
import jaxtyping
import pytest
import torch
from hydra._internal.hydra import Hydra

# Small tensors gain nothing from more, and on a busy machine two threads that wait for each other cost thirty times as much.
torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The session's $DINOTRACK_CACHE; the user's own is never touched."""
    folder = tmp_path_factory.mktemp("dinotrack-cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DINOTRACK_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session", autouse=True)
def no_wandb() -> Iterator[None]:
    """Commands log to W&B unless told otherwise; a run of it takes seconds, and no test is to reach a server."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "disabled")
        patch.delenv("WANDB_API_KEY", raising=False)
        yield


@pytest.fixture(scope="session", autouse=True)
def one_composition() -> Iterator[None]:
    """A command's config is composed once, not a second time for `hydra.mode`, which none of ours sets; so are the same words."""
    composed = dict[Any, Any]()

    def compose(name: str, overrides: Sequence[str] = (), **options: Any) -> Any:
        key = name, *overrides, *options.items()
        if key not in composed:
            composed[key] = hydra.compose(name, overrides=list(overrides), **options)
        return copy.deepcopy(composed[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Hydra, "get_mode", lambda *_, **__: None)
        patch.setattr("dinotrack.training.config.compose", compose)
        yield


@pytest.fixture(autouse=True)
def same_weights_every_run() -> None:
    """Networks that a test does not seed start the same in every run, alone or after others."""
    torch.manual_seed(0)


@pytest.fixture
def rng() -> torch.Generator:
    """Random numbers that are the same in every run."""
    return torch.Generator().manual_seed(0)


@pytest.fixture
def unguarded() -> Iterator[None]:
    """No checks of shapes and types, as outside tests, where our own errors must answer for wrong ones."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def three_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """ViTs in their own widths, but with three blocks, which are drawn in no time."""
    import timm

    monkeypatch.setattr(timm, "create_model", partial(timm.create_model, depth=3))
