"""What only a GPU can show; skipped where there is none."""

import copy

import pytest
import torch
from benchmarks.inputs import Inputs, Size

from dinotrack.trackers import FeatureTracker
from dinotrack.training.batch import BatchSettings
from dinotrack.training.losses import LossTerms, Step
from dinotrack.training.modules import published_losses
from dinotrack.training.probing import cost_of

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SMALL = Size(6, 70, 350, channels=24, queries=12)


def inputs_on(device: str) -> Inputs:
    return Inputs(SMALL, torch.device(device))


def test_a_step_waits_for_no_gpu() -> None:
    inputs = inputs_on("cuda")
    delta, head, store = copy.deepcopy(inputs.delta).train(), inputs.head, inputs.store
    adam, generator = torch.optim.Adam([*delta.parameters(), *head.parameters()]), torch.Generator().manual_seed(0)
    before = torch.cuda.get_sync_debug_mode()
    for number in range(3):
        torch.cuda.set_sync_debug_mode("error" if number else before)  # the first step allocates and picks kernels
        try:
            batch = store.draw(BatchSettings(), generator)
            refined = delta.refine(batch.features, batch.images, batch.frames, batch.grid)
            loss, _ = LossTerms(published_losses())(Step(batch, refined, head), 7000, 10_000)
            adam.zero_grad()
            loss.backward()
            adam.step()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    assert loss.isfinite()


@pytest.mark.parametrize("late", [False, True])
def test_losses_are_those_of_the_cpu(late: bool) -> None:
    cpu, found = inputs_on("cpu"), []
    for device in ("cpu", "cuda"):
        store, head = cpu.store.to(device), copy.deepcopy(cpu.head).to(device)
        delta = copy.deepcopy(cpu.delta).to(device).train()
        batch = store.draw(BatchSettings(), torch.Generator().manual_seed(0))
        refined = delta.refine(batch.features, batch.images, batch.frames, batch.grid)
        found.append(LossTerms(published_losses())(Step(batch, refined, head), 7000 if late else 0, 10_000)[0].cpu())
    assert torch.allclose(found[0], found[1], rtol=1e-3)  # TF32 in convolutions


def test_tracks_are_those_of_the_cpu() -> None:
    cpu = inputs_on("cpu")
    frame, xy = cpu.queries[:, 0].long(), cpu.queries[:, 1:]
    found = []
    for device in ("cpu", "cuda"):
        tool = FeatureTracker(cpu.features.to(device), copy.deepcopy(cpu.head).to(device), (SMALL.width, SMALL.height))
        found.append(tool.positions(frame.to(device), xy.to(device)).cpu())
    assert (found[0] - found[1]).norm(dim=-1).median() < 1e-2


def test_the_probe_sees_what_a_job_takes_of_the_gpu() -> None:
    cost = cost_of(lambda: torch.ones(25_000_000, device="cuda").sum())
    assert 0.9e8 < cost.device < 1.2e8
