"""`dinotrack train-chrono`: its losses against loops, its schedule, what it trains and writes."""

import csv
import json
import math
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from hydra.errors import InstantiationException
from safetensors.torch import load_file

from dinotrack.cli import main
from dinotrack.data.augmentation import TrainingClip
from dinotrack.errors import DinotrackError
from dinotrack.methods.chrono import ChronoTracker
from dinotrack.methods.dino_tracker import FORMAT
from dinotrack.structs import FeatureMap
from dinotrack.training.chrono_command import chrono_data, chrono_module, held_out, listing, train_chrono
from dinotrack.training.chrono_data import Onwards
from dinotrack.training.chrono_module import ChronoModule, chrono_losses
from dinotrack.training.config import compose_config, config_folder
from dinotrack.training.held_out import clip_scores

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
WATCHED = ("held_out.data=synthetic", "held_out.clips=2", "held_out.every=2", "chrono.lr=1e-2")


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


@pytest.mark.slow
def test_two_processes_train_together(tmp_path: Path) -> None:
    words = [*TINY, *WATCHED, "steps=4", "checkpoint_every=2", "trainer.devices=2", "trainer.strategy=ddp", "threads=1"]
    words += ["clips.workers=1", "backbone.layer=2", f"hydra.run.dir={tmp_path / 'two'}"]
    ran = subprocess.run([sys.executable, "-m", "dinotrack", "train-chrono", *words], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("held-out clips") == 1  # one of them speaks
    found = load_file(tmp_path / "two" / "adapters.safetensors")
    assert all(value.isfinite().all() for value in found.values()) and found["adapters.0.conv2.weight"].any()
    assert not [*tmp_path.rglob(".*")]
    with open(tmp_path / "two" / "held_out.csv", newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["0", "0", "2", "2", "4", "4"]


ROWS = {
    "attention": ("TemporalAttention", ["0", "1", "2"]),
    "conv1d": ("TimeConvolution", ["0", "1", "2"]),
    "conv3d": ("SpaceTimeConvolution", ["0", "1", "2"]),
    "early": ("TemporalAttention", ["0", "1"]),
    "later": ("TemporalAttention", ["2"]),
}


@pytest.mark.parametrize("name", sorted(path.stem for path in (config_folder() / "temporal").glob("*.yaml")))
def test_the_rows_of_the_ablation_at_the_small_setting(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm, "create_model", partial(timm.create_model, depth=4))
    module = chrono_module(compose_config("train-chrono", "chrono_small", [f"temporal={name}"]))
    adapters = {number: type(each.attn_temp).__name__ for number, each in module.adapters.named_children()}
    kind, numbers = ROWS[name]
    assert adapters == dict.fromkeys(numbers, kind)


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
        (["clips.workers=-1"], "workers=-1"),
        (["seed=-1"], "seed=-1"),
        (["checkpoint_every=0"], "checkpoint_every=0"),
        (["chrono.warm_up=1"], "warm_up=1"),
        (["chrono.lr=0"], "lr=0"),
        (["backbone.upscale=2"], "it is method.upscale=3.5"),
        ([f"data={tmp_path}"], "no clips there"),
    ):
        with pytest.raises((DinotrackError, InstantiationException), match=message):
            train_chrono(config(*words), tmp_path / "run")
    for words, message in (
        ([f"data={tmp_path}", f"held_out.data={tmp_path}/."], "is what is trained on"),
        (["held_out.data=synthetic", "held_out.clips=5001"], "expected at most 5000"),
    ):
        with pytest.raises(DinotrackError, match=message):
            held_out(config(*words))
    with pytest.raises(DinotrackError, match="take backbone=chrono"):
        train_chrono(compose_config("train-chrono", overrides=["data=synthetic", "backbone=dense_sift", "steps=1"]))


def test_a_batch_moves_with_its_clip() -> None:
    clip = TrainingClip(torch.zeros(2, 3, 4, 4), torch.zeros(1).long(), torch.zeros(1, 2, 2), torch.zeros(1, 2))
    assert clip.to("meta").images.device.type == "meta"


def test_held_out_clips_are_scored_before_between_and_at_the_end(tmp_path: Path) -> None:
    main(["train-chrono", *TINY, *WATCHED, f"hydra.run.dir={tmp_path}"])
    with open(tmp_path / "held_out.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row["clip"]) for row in rows] == [(str(s), str(c)) for s in (0, 2, 3) for c in (0, 1)]
    watched = held_out(config(*WATCHED))
    assert watched is not None
    for step, adapters in ((0, "null"), (3, str(tmp_path / "adapters.safetensors"))):
        module = chrono_module(config(f"backbone.adapters={adapters}"))
        own = [row for row in rows if row["step"] == str(step)]
        for row, clip in zip(own, (watched.clips[0], watched.clips[1]), strict=True):
            scores = clip_scores(module, clip)
            assert {name: float(row[name]) for name in ("delta_avg", "oa", "aj")} == pytest.approx(
                {name: getattr(scores, name) for name in ("delta_avg", "oa", "aj")}, abs=1e-3
            )
    kept = json.loads((tmp_path / "metrics.json").read_text())
    mean = sum(float(row["delta_avg"]) for row in rows[-2:]) / 2
    assert set(kept) == {"start", "chrono"} and kept["chrono"]["delta_avg"] == pytest.approx(mean, abs=1e-3)


def test_held_out_clips_are_none_of_the_trainings() -> None:
    watched, settings = held_out(config(*WATCHED)), config("seed=3")
    assert watched is not None
    assert not watched.clips.settings.augment
    seen = chrono_data(settings).clips
    first = {clips.clips.first + clips.number(0) for clips in (watched.clips, seen)}  # type: ignore[union-attr]
    assert len(first) == 2
    assert not torch.equal(watched.clips[0].images, seen[0].images)


def test_a_stopped_training_goes_on_as_if_nothing_had_been(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [*TINY, *WATCHED, "steps=5", "checkpoint_every=2", "logger=csv", "trainer.log_every_n_steps=1"]
    main(["train-chrono", *words, f"hydra.run.dir={tmp_path / 'whole'}"])
    step = ChronoModule.training_step

    def failing(self: ChronoModule, clip: TrainingClip, number: int):
        if self.global_step == 3:
            raise RuntimeError("the power is gone")
        return step(self, clip, number)

    with monkeypatch.context() as context:
        context.setattr(ChronoModule, "training_step", failing)
        with pytest.raises(SystemExit):
            main(["train-chrono", *words, f"hydra.run.dir={tmp_path / 'stopped'}"])
    assert not (tmp_path / "stopped" / "adapters.safetensors").exists()
    main(["train-chrono", *words, f"hydra.run.dir={tmp_path / 'stopped'}", "resume=true"])
    for name in ("held_out.csv", "metrics.csv"):
        assert (tmp_path / "stopped" / name).read_text() == (tmp_path / "whole" / name).read_text()
    whole, resumed = (load_file(tmp_path / name / "adapters.safetensors") for name in ("whole", "stopped"))
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    with pytest.raises(SystemExit):
        main(["train-chrono", *words, "chrono.lr=1e-3", f"hydra.run.dir={tmp_path / 'stopped'}", "resume=true"])


@pytest.mark.parametrize("steps", [1, 2])
def test_very_short_trainings_have_a_schedule_too(steps: int) -> None:
    assert all(value.isfinite().all() for value in train_chrono(config(f"steps={steps}")).parameters())


def test_a_position_that_no_one_sees_may_be_anything(rng: torch.Generator) -> None:
    xy, truth = (20 * torch.rand(3, 4, 2, generator=rng) for _ in range(2))
    occluded = torch.tensor([[0.0, 1.0, 0.0, 1.0]]).expand(3, -1)
    expected = chrono_losses(xy, torch.zeros(3, 4, 2), truth, occluded)
    truth[:, 1] = torch.nan  # frame 1, where all are occluded
    found = chrono_losses(xy, torch.zeros(3, 4, 2), truth, occluded)
    assert {name: float(value) for name, value in found.items()} == {k: float(v) for k, v in expected.items()}


def test_processes_share_the_clips_out_and_a_resumed_one_has_the_rest() -> None:
    shares = [list(Onwards(4, 12, rank, 2)) for rank in (0, 1)]
    assert shares == [[4, 6, 8, 10], [5, 7, 9, 11]] and len(Onwards(4, 12, 0, 2)) == 6
    data = chrono_data(config("+trainer.accumulate_grad_batches=2", "steps=3"), devices=2, done=1)
    assert (len(data.clips), data.first) == (12, 4)


def test_what_a_reading_process_says_comes_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"no archive")
    with pytest.raises(DinotrackError) as caught:
        train_chrono(config(f"data={tmp_path}", "clips.workers=1"))
    assert "a.npz" in str(caught.value) and "\n" not in str(caught.value) and "Traceback" not in str(caught.value)


def test_a_folder_that_changed_cannot_be_gone_on_with(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.npz").write_bytes(b"any")
    before = listing(str(tmp_path))
    (tmp_path / "b.npz").write_bytes(b"other")
    changed = listing(str(tmp_path))
    (tmp_path / "b.npz").unlink()
    assert len({before, changed, listing(str(tmp_path))}) == 3


def test_a_wrong_objective_is_named_before_the_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train-chrono", *TINY, *WATCHED, "objective=delta_seg", f"hydra.run.dir={tmp_path}"])
    assert "held-out clips give delta_avg, oa, aj" in capsys.readouterr().err
    assert not (tmp_path / "resume.ckpt").exists()
