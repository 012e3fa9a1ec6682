"""Would a held-out cycle score tell when to stop? `python scripts/early_stopping.py` writes docs/results/early_stopping.csv.

Fits experiment=demo to one clip of each kind of our benchmark and, every 25 steps, takes the share of random pixels that come back
to within γ between frame pairs which no search of the fit has seen, beside the clip's true scores.
"""

import dinotrack  # noqa: F401, I001  (before torch, whose threads then sleep while they wait)

import csv
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate

from dinotrack.correspondences import frame_pairs
from dinotrack.data.synthetic_benchmark import SyntheticBenchmark
from dinotrack.methods.dino_tracker import refine_features
from dinotrack.refined_pairs import PairSearch, cycle_pairs
from dinotrack.training.callbacks import RebuildPairs
from dinotrack.training.config import compose_config, make_module
from dinotrack.training.fit import make_trainer, prepare
from dinotrack.training.midway import score_module
from dinotrack.training.stages import environment

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"


class HeldOut(L.Callback):
    """A row every `every` steps."""

    def __init__(self, truth: Any, every: int = 25, pairs: int = 20) -> None:
        self.truth, self.every, self.pairs = truth, every, pairs
        self.rows: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step % self.every:
            return
        store, generator = pl_module.data.store, torch.Generator().manual_seed(1)
        held = frame_pairs(len(store.images), self.pairs, generator)
        features = refine_features(store.features, store.images, pl_module.delta)
        search = PairSearch()
        found = cycle_pairs(features, pl_module.head, store.masks, held, search, generator, both=True)
        tried = 2 * self.pairs * (search.points_foreground + search.points_background)
        scores = score_module(pl_module, pl_module.data, self.truth)
        self.rows.append({"step": trainer.global_step, "held_out": len(found) / tried, **scores})
        print(self.rows[-1], flush=True)


def main() -> None:
    benchmark, rows = SyntheticBenchmark(subset="four"), []
    for name in benchmark.names():
        clip = benchmark.open(name)
        config = compose_config("fit", "demo", ["logger=none"])
        L.seed_everything(config.seed, verbose=False)
        data = prepare(config, clip.video)
        held_out = HeldOut(clip.truth)
        module = make_module(config, data.backbone)
        callbacks = [instantiate(callback) for callback in config.callbacks.values()]
        if not any(isinstance(callback, RebuildPairs) for callback in callbacks):
            callbacks.append(RebuildPairs())
        make_trainer(config, config.steps, [*callbacks, held_out], None).fit(module, data)
        rows += [{"clip": name, **row, "commit": environment()["commit"]} for row in held_out.rows]
    with (RESULTS / "early_stopping.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()} for row in rows)


if __name__ == "__main__":
    main()
