"""Training clips by number: which clip, which crop, colours and queries follow from seed and number alone."""

from collections.abc import Iterator
from dataclasses import dataclass

import lightning as L
import numpy as np
from torch.utils.data import DataLoader, Dataset, Sampler

from dinotrack.data.augmentation import TrainingClip, training_clip
from dinotrack.data.point_clips import PointClips, SyntheticClips
from dinotrack.errors import DinotrackError


@dataclass(frozen=True)
class ClipSettings:
    """What a training clip is: at most `frames` frames at (W, H) `size` with `points` queries (§8)."""

    frames: int = 24
    size: tuple[int, int] = (256, 256)
    points: int = 256
    augment: bool = True

    def __post_init__(self) -> None:
        if self.frames < 2 or self.points < 1 or min(self.size) < 1:
            raise DinotrackError(
                f"frames={self.frames}, points={self.points}, size={self.size}: expected 2 frames, a point, a pixel, or more"
            )


class TrainingClips(Dataset[TrainingClip]):
    """`length` training clips out of `clips`, which are shuffled anew each time through."""

    def __init__(self, clips: PointClips, settings: ClipSettings, length: int, seed: int = 0) -> None:
        self.clips, self.settings, self.length, self.seed = clips, settings, length, seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> TrainingClip:
        rng = np.random.default_rng([self.seed, index])
        clip = self.clips[self.number(index)]
        count, wanted = len(clip.frames), self.settings.frames
        first = int(rng.integers(count - wanted + 1)) if count > wanted else 0
        part = clip.part(first, min(count, first + wanted))
        options = {"size": self.settings.size, "points": self.settings.points, "augment": self.settings.augment}
        return training_clip(part, rng, **options)

    def number(self, index: int) -> int:
        """The clip at a place of the training: endless ones in their order, others in a random one."""
        if isinstance(self.clips, SyntheticClips):
            return index + self.seed * self.length
        turn, place = divmod(index, len(self.clips))
        return int(np.random.default_rng([self.seed, turn]).permutation(len(self.clips))[place])


class Onwards(Sampler[int]):
    """Numbers from `first` on, of `world` processes every one its own; the length is that of the whole training, of which a
    resumed one is the rest.
    """

    def __init__(self, first: int, length: int, rank: int = 0, world: int = 1) -> None:
        self.first, self.length, self.rank, self.world = first, length, rank, world

    def __len__(self) -> int:
        return self.length // self.world

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.first + self.rank, self.length, self.world))


class ChronoDataModule(L.LightningDataModule):
    """One clip a step and device, from number `first` on; the processes of several devices take turns."""

    def __init__(self, clips: TrainingClips, workers: int = 0, first: int = 0) -> None:
        super().__init__()
        if workers < 0:
            raise DinotrackError(f"clips.workers={workers}: expected 0 or more")
        self.clips, self.workers, self.first = clips, workers, first

    def train_dataloader(self) -> DataLoader[TrainingClip]:
        process = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        sampler = Onwards(self.first, len(self.clips), *process)
        return DataLoader(self.clips, batch_size=None, sampler=sampler, num_workers=self.workers)
