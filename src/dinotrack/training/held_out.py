"""Clips that a training of Chrono does not see, scored before it, in its midst and at its end."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch

from dinotrack.benchmark_metrics import flattened
from dinotrack.chrono_head import visible_share
from dinotrack.data.augmentation import TrainingClip
from dinotrack.files import write_atomically
from dinotrack.metrics import TapVidScores, mean_over_videos, tapvid_metrics
from dinotrack.training.chrono_data import TrainingClips
from dinotrack.training.chrono_module import ChronoModule
from dinotrack.training.midway import LOGGED

TABLE = "held_out.csv"
"""In the run folder: a line for each scored clip."""


class HeldOut(L.Callback):
    """TAP-Vid's scores of the same clips at the start, every `every` steps and at the end; queries in any frame, all others count.

    At the start of a new training the adapters are zero: those are the scores of the ViT without adapters.
    """

    def __init__(self, clips: TrainingClips, every: int | None = None) -> None:
        self.clips, self.every = clips, every
        self.found = dict[int, list[TapVidScores]]()
        """Scores of each clip by the number of steps."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.global_step:
            self.score(trainer, pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any, **__: Any) -> None:
        step = trainer.global_step
        if step == trainer.max_steps or (self.every and step % self.every == 0):
            self.score(trainer, pl_module)

    def score(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Score the clips as the module is now; one process does it for all."""
        assert isinstance(module, ChronoModule)
        if not trainer.is_global_zero:
            return
        clips = (self.clips[number].to(module.device) for number in range(len(self.clips)))
        self.found[trainer.global_step] = [clip_scores(module, clip) for clip in clips]
        means = flattened(mean_over_videos(self.found[trainer.global_step]))
        step = max(0, trainer.global_step - 1)  # the step that has just ended, as Lightning counts
        for logger in trainer.loggers:
            logger.log_metrics({f"held_out/{name}": means[name] for name in LOGGED if name in means}, step)

    def means(self) -> dict[str, TapVidScores]:
        """Means over the clips at the start and, under the method's name, at the end."""
        first, last = min(self.found), max(self.found)
        return {"start": mean_over_videos(self.found[first]), "chrono": mean_over_videos(self.found[last])}

    def save(self, path: Path) -> None:
        """Write the scores of every clip as CSV."""
        lines = [
            {"step": step, "clip": number, **{name: f"{value:.4f}" for name, value in flattened(scores).items()}}
            for step, clips in sorted(self.found.items())
            for number, scores in enumerate(clips)
        ]

        def write(name: Path) -> None:
            with open(name, "w", newline="") as file:
                table = csv.DictWriter(file, list(lines[0]))
                table.writeheader()
                table.writerows(lines)

        write_atomically(path, write)

    def state_dict(self) -> dict[str, Any]:
        return {"found": {step: [vars(scores) for scores in clips] for step, clips in self.found.items()}}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.found = {step: [TapVidScores(**scores) for scores in clips] for step, clips in state_dict["found"].items()}


@torch.no_grad()
def clip_scores(module: ChronoModule, clip: TrainingClip) -> TapVidScores:
    """TAP-Vid's scores of a clip's points."""
    with module.backbone.precision():
        xy, logits = module.track(clip)
    size = (clip.images.shape[3], clip.images.shape[2])
    asked = clip.xy[torch.arange(len(clip.query)), clip.query]
    queries = torch.cat([clip.query[:, None].to(asked.dtype), asked], 1)
    visible = visible_share(logits) >= 0.5
    return tapvid_metrics(queries, clip.xy, clip.occluded == 0, xy.float(), visible, size)
