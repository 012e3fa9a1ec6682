"""`dinotrack train-chrono`: its losses against loops, its schedule, what it trains and writes."""

import math
from pathlib import Path

import pytest
import torch
from hydra.errors import InstantiationException
from safetensors.torch import load_file

from dinotrack.cli import main
from dinotrack.data.augmentation import TrainingClip
from dinotrack.errors import DinotrackError
from dinotrack.methods.chrono import ChronoTracker
from dinotrack.methods.dino_tracker import FORMAT
from dinotrack.structs import FeatureMap
from dinotrack.training.chrono_command import chrono_data, chrono_module, train_chrono
from dinotrack.training.chrono_module import chrono_losses
from dinotrack.training.config import compose_config

pytestmark = pytest.mark.usefixtures("three_blocks")

TINY = [
    "data=synthetic",
    "backbone=chrono_s14",
    "backbone.layer=2",
    "backbone.width=8",
    "backbone.pretrained=false",
    "clips.frames=3",
    "clips.size=[32,32]",
    "clips.points=8",
    "clips.workers=0",
    "steps=3",
    "device=cpu",
    "logger=none",
]


def config(*words: str):
    return compose_config("train-chrono", overrides=[*TINY, *words])


def bce(logit: float, target: float) -> float:
    chance = 1 / (1 + math.exp(-logit))
    return -(target * math.log(chance) + (1 - target) * math.log(1 - chance))


def test_the_losses_are_their_formulas(rng: torch.Generator) -> None:
    xy, truth = (20 * torch.rand(5, 4, 2, generator=rng) for _ in range(2))
    logits = torch.randn(5, 4, 2, generator=rng)
    occluded = (torch.rand(5, 4, generator=rng) < 0.4).float()
    found = chrono_losses(xy, logits, truth, occluded)
    sums = dict.fromkeys(found, 0.0)
    for n in range(5):
        for t in range(4):
            error, hidden = math.dist(xy[n, t].tolist(), truth[n, t].tolist()), bool(occluded[n, t])
            huber = error**2 / 2 if error <= 4 else 4 * (error - 2)
            sums["position"] += 0 if hidden else 0.05 * huber / 20
            sums["occlusion"] += bce(float(logits[n, t, 0]), float(hidden)) / 20
            sums["distance"] += 0 if hidden else bce(float(logits[n, t, 1]), float(error > 6)) / 20
    assert {name: pytest.approx(value, rel=1e-5) for name, value in sums.items()} == {
        k: float(v) for k, v in found.items()
    }


def test_no_gradient_of_distance_or_occlusion_leads_to_positions() -> None:
    xy = torch.rand(2, 3, 2, requires_grad=True)
    terms = chrono_losses(xy, torch.randn(2, 3, 2), torch.rand(2, 3, 2), torch.zeros(2, 3))
    assert not terms["distance"].requires_grad and not terms["occlusion"].requires_grad
    terms["position"].backward()
    assert xy.grad is not None and xy.grad.isfinite().all()


def test_training_tracks_as_the_tracker_does() -> None:
    settings = config()
    module, clip = chrono_module(settings), chrono_data(settings).clips[0]
    torch.manual_seed(1)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    with torch.no_grad():
        xy, logits = module.track(clip)
        features = module.backbone.features(clip.images)
    grid, about = module.backbone.grid, {"path": "", "size": [32, 32], "fps": 25.0}
    settings = {"format": FORMAT, "video": about, "head": {"sharpness": 20.0, "within": 5}}
    tracker = ChronoTracker(FeatureMap(features, grid.stride, grid.offset, (32, 32)), module.visibility, settings)
    rows = torch.arange(len(clip.query))
    queries = torch.cat([clip.query[:, None].float(), clip.xy[rows, clip.query]], 1)
    tracks = tracker.track(queries)
    assert (tracks.xy - xy).abs().max() < 1e-4
    share = torch.sigmoid(-logits).prod(-1)
    share[rows, clip.query] = 1
    assert (tracks.confidence - share).abs().max() < 1e-5


def test_a_training_moves_adapters_and_leaves_the_vit(tmp_path: Path) -> None:
    settings = config("steps=6", "chrono.lr=1e-2")
    before, again = chrono_module(settings), chrono_module(settings)
    module = train_chrono(settings, tmp_path)
    for name, value in before.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
        if name in ("adapters.0.conv2.weight", "adapters.0.conv1.weight", "visibility.weight"):
            assert not torch.equal(value, module.state_dict()[name])
    for name, value in before.backbone.vit.state_dict().items():
        assert torch.equal(value, module.backbone.vit.state_dict()[name])
    assert {name.split(".")[0] for name in module.state_dict()} == {"adapters", "visibility"}
    assert not any("vit" in name for name, _ in module.named_parameters())


def test_optimiser_and_schedule_are_the_published_ones(tmp_path: Path) -> None:
    settings = config("steps=1000")
    module = chrono_module(settings)

    class Trainer:
        max_steps = 1000

    module._trainer = Trainer()  # type: ignore[assignment]
    made = module.configure_optimizers()
    optimizer, scheduler = made["optimizer"], made["lr_scheduler"]["scheduler"]
    rates, momenta = [], []
    for _ in range(1000):
        rates.append(optimizer.param_groups[0]["lr"])
        momenta.append(optimizer.param_groups[0]["betas"][0])
        optimizer.step()
        scheduler.step()
    assert isinstance(optimizer, torch.optim.AdamW) and optimizer.param_groups[0]["weight_decay"] == 1e-4
    assert rates[0] == pytest.approx(1e-4 / 25) and max(rates) == pytest.approx(1e-4) and rates.index(max(rates)) == 2
    assert rates[-1] == pytest.approx(1e-4 / 25 / 1e4, rel=1e-3)
    assert (momenta[0], min(momenta), momenta[-1]) == pytest.approx((0.95, 0.85, 0.95), abs=1e-6)
    assert settings.trainer.gradient_clip_val == 1.0 and settings.method.size == [256, 256]


def test_the_command_writes_adapters_that_are_read_again(tmp_path: Path) -> None:
    main(["train-chrono", *TINY, f"hydra.run.dir={tmp_path}"])
    path = tmp_path / "adapters.safetensors"
    weights = load_file(path)
    assert not any(name.startswith(("vit", "backbone")) for name in weights)
    further = chrono_module(config(f"backbone.adapters={path}"))
    assert all(torch.equal(weights[name], value) for name, value in further.state_dict().items())


def test_wrong_settings_are_named(tmp_path: Path) -> None:
    for words, message in (
        (["steps=0"], "steps=0"),
        (["backbone.adapted=[]"], "nothing to train"),
        (["clips.points=0"], "points=0"),
        ([f"data={tmp_path}"], "no clips there"),
    ):
        with pytest.raises((DinotrackError, InstantiationException), match=message):
            train_chrono(config(*words))
    with pytest.raises(DinotrackError, match="take backbone=chrono"):
        train_chrono(compose_config("train-chrono", overrides=["data=synthetic", "backbone=dense_sift", "steps=1"]))


def test_a_batch_moves_with_its_clip() -> None:
    clip = TrainingClip(torch.zeros(2, 3, 4, 4), torch.zeros(1).long(), torch.zeros(1, 2, 2), torch.zeros(1, 2))
    assert clip.to("meta").images.device.type == "meta"
