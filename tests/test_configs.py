"""Every YAML: composed, instantiated and stepped at a tiny size, with random weights where it has any."""

from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from dinotrack import DinotrackError, Video
from dinotrack.backbones import FACETS, VitBackbone
from dinotrack.cli import HYDRA_COMMANDS
from dinotrack.data.benchmarks import Benchmark
from dinotrack.data.synthetic import synthetic_clip
from dinotrack.trackers import FeatureTracker
from dinotrack.training.batch import BatchSettings
from dinotrack.training.config import compose_config, config_folder, make_data, make_module
from dinotrack.training.evaluating import benchmark_of
from dinotrack.training.fit import fit, prepare, published_steps, train, warn_of_small_radius
from dinotrack.training.unfitted import unfitted_tracker
from dinotrack.vits import vit_skeleton

CONF = config_folder()
BASE = ["flow=dis", "backbone=dense_sift", "backbone.stride=4", "resolution=64", "steps=1", "device=cpu", "logger=none"]
RANDOM = ["backbone.pretrained=false", "flow.pretrained=false"]
RANDOM_SMALL = [*RANDOM, "method.batch.flow_pairs=16"]
HIDDEN = ["method.delta.hidden=[4,8]"]


def names(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@pytest.fixture(scope="module")
def video() -> Video:
    return synthetic_clip(seed=1, frames=4, size=(64, 48), points=8).video


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What settings that differ in a fit alone share."""
    return tmp_path_factory.mktemp("cache")


def tiny_backbone(name: str) -> list[str]:
    return [] if name.startswith("dense_sift") else ["backbone.layer=1", "backbone.stride=14", "resolution=84"]


def tiny_flow(name: str) -> list[str]:
    return ["flow.updates=1"] if name == "raft" else []


def step(video: Video, cache: Path, tmp_path: Path, overrides: list[str]) -> None:
    hidden = [] if any("lora" in word for word in overrides) else HIDDEN
    config = compose_config("fit", overrides=[*BASE, *RANDOM_SMALL, *hidden, f"cache_dir={cache}", *overrides])
    data = prepare(config, video)
    tracker = train(config, data, folder=tmp_path)
    assert tracker.track(torch.tensor([[0.0, 30.0, 20.0]])).xy.isfinite().all()


@pytest.mark.parametrize("command", sorted(HYDRA_COMMANDS))
def test_every_command_composes(command: str) -> None:
    needed = {
        "track": ["checkpoint=x.ckpt"],
        "import": ["video=x.mp4", "published=x"],
        "ablate": ["table=x"],
        "train-chrono": ["data=x"],
    }
    config = compose_config(command, overrides=needed.get(command, ["video=x.mp4"]))
    assert OmegaConf.to_container(config, resolve=True)


@pytest.mark.parametrize("name", names("benchmark"))
def test_every_benchmark_composes_and_is_made(name: str, tmp_path: Path) -> None:
    path = [] if name == "synthetic" else [f"benchmark.path={tmp_path}"]
    config = compose_config("evaluate", overrides=[f"benchmark={name}", *path])
    assert config.benchmark.name == name and config.folder == f"runs/evaluate/{name}-dino_tracker"
    assert isinstance(benchmark_of(config), Benchmark)
    assert {"clip", "published_weights"} <= config.benchmark.keys()


@pytest.mark.parametrize("name", names("clip"))
def test_every_clip_of_the_ablations_names_a_video_with_truth(name: str) -> None:
    config = compose_config("ablate", overrides=[f"clip={name}", "seed=3", "table=x"])
    assert config.synthetic.seed == 3 if name == "synthetic" else str(config.truth).endswith("badja.json")


UNFITTED = ("raw_features", "flow_chain", "flow_chain_256")


@pytest.mark.usefixtures("three_blocks")
@pytest.mark.parametrize("name", names("ablation"))
def test_every_ablation_steps(name: str, video: Video, cache: Path, tmp_path: Path) -> None:
    if name in UNFITTED:
        settings = [*BASE, *RANDOM, f"cache_dir={cache}", "video=x", f"ablation={name}"]
        tracks = unfitted_tracker(compose_config("run", overrides=settings), video).track(torch.zeros(1, 3))
        assert tracks.xy.shape == (1, 4, 2) and tracks.xy.isfinite().all()
    elif name == "lora":
        pytest.importorskip("peft", reason="LoRA is an extra")
        step(
            video[:2], cache, tmp_path, ["ablation=lora", "backbone=dinov2_vits14", "backbone.layer=2", "resolution=84"]
        )
    else:
        step(video, cache, tmp_path, [f"ablation={name}", "supervision.gamma=50"])


@pytest.mark.usefixtures("three_blocks")
@pytest.mark.parametrize(
    ("overrides", "channels"),
    [(["backbone.layer=1"], 384), (["backbone.layer=3"], 384), *[([f"backbone.facet={f}"], 384) for f in FACETS]],
)
def test_layers_and_facets_of_a_small_vit_step(
    overrides: list[str], channels: int, video: Video, cache: Path, tmp_path: Path
) -> None:
    small = [
        "backbone=dinov2_vits14",
        "backbone.stride=14",
        "resolution=84",
        "backbone.layer=2",
        "supervision.gamma=50",
    ]
    step(video[:2], cache, tmp_path, [*small, *overrides])
    settings = [*BASE, *RANDOM, f"cache_dir={cache}", "video=x", "ablation=raw_features", *small, *overrides]
    tracker = unfitted_tracker(compose_config("run", overrides=settings), video[:2])
    assert isinstance(tracker, FeatureTracker) and tracker.features.values.shape[1] == channels


@pytest.mark.usefixtures("three_blocks")
def test_settings_of_another_refinement_are_named() -> None:
    lora = [*BASE, *RANDOM, "video=x", "ablation=lora"]
    with pytest.raises(DinotrackError, match=r"\+method\.delta\.hidden"):
        compose_config("fit", overrides=[*lora, *HIDDEN])
    config = compose_config("fit", overrides=[*lora, "+method.delta.hidden=[4,8]"])
    with pytest.raises(DinotrackError, match=r"method\.delta: .*hidden.*remove that setting"):
        make_module(config, VitBackbone("vit_small_patch14_dinov2.lvd142m", layer=2, pretrained=False))


VITS = [name for name in names("backbone") if not name.startswith("dense_sift")]


@pytest.mark.parametrize("name", names("backbone"))
def test_every_backbone_steps(
    name: str, video: Video, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ViTs in their own widths, but with two blocks; `test_every_whole_vit_steps` has them all."""
    monkeypatch.setattr(timm, "create_model", partial(timm.create_model, **({"depth": 2} if name in VITS else {})))
    step(video[:2], cache, tmp_path, [f"backbone={name}", *tiny_backbone(name), "supervision.gamma=50"])


@pytest.mark.slow
@pytest.mark.parametrize("name", VITS)
def test_every_whole_vit_steps(name: str, video: Video, cache: Path, tmp_path: Path) -> None:
    step(video[:2], cache, tmp_path, [f"backbone={name}", *tiny_backbone(name), "supervision.gamma=50"])


@pytest.mark.parametrize("name", VITS)
def test_every_vit_has_the_layer_that_its_config_names(name: str) -> None:
    config = compose_config("fit", overrides=[f"backbone={name}"]).backbone
    vit = vit_skeleton(config.model)
    assert 1 <= config.layer <= len(vit.blocks)
    assert (vit.embed_dim, len(vit.blocks), type(vit.blocks[0].mlp).__name__) == {
        "s": (384, 12, "Mlp"),
        "b": (768, 12, "Mlp"),
        "l": (1024, 24, "Mlp"),
        "g": (1536, 40, "GluMlp"),
    }[name.removesuffix("14")[-1]]


@pytest.mark.parametrize("name", names("flow"))
def test_every_flow_steps(name: str, video: Video, cache: Path, tmp_path: Path) -> None:
    step(video[:2], cache, tmp_path, [f"flow={name}", *tiny_flow(name), "supervision.gamma=1e4"])


@pytest.mark.parametrize("group", ["losses", "callbacks", "trainer"])
def test_every_other_group_steps(group: str, video: Video, cache: Path, tmp_path: Path) -> None:
    for name in names(group):
        step(video, cache, tmp_path, [f"{group}={name}"])


@pytest.mark.parametrize("name", names("logger"))
def test_every_logger_steps(
    name: str, video: Video, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    step(video, cache, tmp_path, [f"logger={name}", "trainer.log_every_n_steps=1"])
    if name == "csv":
        assert "loss/flow" in (tmp_path / "metrics.csv").read_text()
    if name == "wandb":
        assert list((tmp_path / "wandb").glob("offline-run-*"))


@pytest.mark.parametrize("name", [name for name in names("experiment") if not name.startswith("chrono")])
def test_every_experiment_steps(name: str, video: Video, cache: Path, tmp_path: Path) -> None:
    # Of the published networks with random weights, RAFT finds no tracklet.
    small = [*HIDDEN, "flow=dis", "backbone=dense_sift"] if name == "fast" else []
    overrides = [*RANDOM, *small, f"cache_dir={cache}", "steps=1", "method.batch.flow_pairs=16", "resolution=64"]
    assert fit(video, experiment=name, overrides=overrides, progress=False).track(torch.zeros(1, 3)).xy.isfinite().all()


def test_a_radius_below_a_token_is_warned_of(video: Video, caplog: pytest.LogCaptureFixture) -> None:
    def warned(experiment: str, *overrides: str) -> list[str]:
        caplog.clear()
        config = compose_config("fit", experiment, overrides)
        warn_of_small_radius(config, make_data(config, video))
        return [record.getMessage() for record in caplog.records]

    for experiment in ("tiny", "demo", "ablations", "cpu_small"):
        assert warned(experiment) == []
    assert warned("tiny", "method.head.radius=36") == []
    [line] = warned("tiny", "method.head.radius=35")
    assert line.startswith("R is 3.9 pixels, a token 4: ") and line.endswith(" or at least method.head.radius=36")
    assert warned("tiny", "method.head.radius=4", "scale_constants=false") == []


def test_the_command_line_wins_over_an_experiment() -> None:
    config = compose_config("fit", "tiny", ["steps=7", "backbone=dinov2_vits14", "flow=raft", "backbone.stride=14"])
    assert config.steps == 7
    assert config.backbone.model.startswith("vit_small")
    assert config.backbone.stride == 14
    assert config.flow._target_.endswith("Raft")


def test_defaults_are_the_published_setting() -> None:
    config = compose_config("run", overrides=["video=x.mp4"])
    assert (config.backbone.layer, config.backbone.stride, config.backbone.facet) == (16, 7, "token")
    assert "large" in config.backbone.model
    weights = {name: term.weight for name, term in config.losses.items()}
    assert weights == {"flow": 1.0, "best_buddy": 25e-5, "refined_best_buddy": 5e-5, "cycle": 0.5, "prior": 1e-4}
    assert (config.steps, config.method.module.lr, config.resolution) == (None, 0.01, 854)
    assert [published_steps(frames) for frames in (2, 100, 249, 250, 1000)] == [10000] * 3 + [20000] * 2
    batch = OmegaConf.to_container(config.method.batch)
    assert isinstance(batch, dict)
    batch.pop("_target_")
    assert BatchSettings(**{str(k): v for k, v in batch.items()}) == BatchSettings()


def test_config_and_constructor_defaults_agree(video: Video, cache: Path, tmp_path: Path) -> None:
    """What `DinoTrackerModule()` and `VideoDataModule(video, ...)` do unasked is what the default config says."""
    overrides = ["backbone=dense_sift", "flow=dis", "video=x.mp4", f"cache_dir={cache}", "device=cpu"]
    config = compose_config("fit", overrides=overrides)
    from dinotrack.preprocessing import Supervision
    from dinotrack.training.callbacks import RebuildPairs
    from dinotrack.training.modules import DinoTrackerModule

    assert make_data(config, video).supervision == Supervision()
    module, plain = make_module(config, make_data(config, video).backbone), DinoTrackerModule()
    assert module.losses == plain.losses
    assert {**module.delta.settings, "channels": 1024} == plain.delta.settings
    found, expected = instantiate(config.callbacks.rebuild), RebuildPairs()
    assert vars(found) == vars(expected)
    assert module.head.settings == plain.head.settings
    assert (module.lr, module.decay, module.decay_every, module.decay_on) == (0.01, 0.999, 40, "delta")
    assert module.visibility == plain.visibility
