"""The paper's runs: values in their files, and one step of each at a small size."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.gradients import step_gradients
from tests.support.image_shards import write_image_captions, write_images
from tests.support.paths import TRAINER_CONFIGS
from trainer.config import TrainConfig
from trainer.objectives.synclr import ContrastiveConfig, SynCLR
from transforms.core.config import load_config

CONFIGS = TRAINER_CONFIGS
TRAININGS = sorted(path.stem for path in CONFIGS.glob("*.yaml") if "evaluate" not in path.stem)
ABLATIONS = [name for name in TRAININGS if name.startswith("ablation_")]

SMALL = [
    "images_per_caption=2",
    "captions_per_batch=4",
    "device=cpu",
    "precision=fp32",
    "model.image_size=16",
    "model.patch_size=8",
    "model.width=12",
    "model.depth=2",
    "model.num_heads=2",
    "crops.local_size=8",
    "execution.compile=false",
    "loader.num_workers=0",
]
SMALL_OBJECTIVE = {
    "contrastive": [
        "objective.contrastive_head.hidden=16",
        "objective.contrastive_head.out=8",
        "objective.prototype_head.hidden=16",
        "objective.prototype_head.bottleneck=8",
        "objective.prototype_head.num_prototypes=12",
    ],
    "supervised": [],
    "clip": [
        "objective.text.width=8",
        "objective.text.depth=1",
        "objective.text.num_heads=2",
        "objective.text.out=8",
    ],
}


def load(name: str, *overrides: str) -> TrainConfig:
    return load_config(TrainConfig, str(CONFIGS / f"{name}.yaml"), overrides)


@pytest.mark.parametrize("name", TRAININGS)
def test_a_step_of_each_at_a_small_size(name: str, tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    write_image_captions(tmp_path / "captions")
    kind = load(name).objective.kind
    config = load(name, f"run={tmp_path}", *SMALL, *SMALL_OBJECTIVE[kind])
    terms, gradients = step_gradients(config, 0)
    assert all(term.isfinite() for term in terms.values())
    assert gradients["encoder.patch_embed.proj.weight"].abs().sum() > 0
    assert ("local" in terms) == (config.crops.num_local > 0)
    assert ("ibot" in terms) == (getattr(config.objective, "ibot_weight", 0.0) > 0)


@pytest.mark.parametrize(
    ("name", "captions", "steps", "warmup", "peak"),
    [
        ("synclr_vitb16", 8192, 500_000, 80_000, 2e-3),
        ("synclr_vitl14", 8192, 500_000, 80_000, 1.5e-3),
        ("scaling_vitb16", 2048, 300_000, 10_000, 2e-3),
        *((name, 2048, 85_000, 10_000, 2e-3) for name in ABLATIONS),
    ],
)
def test_schedules_are_the_papers(
    name: str, captions: int, steps: int, warmup: int, peak: float
) -> None:
    config = load(name)
    assert (config.captions_per_batch, config.steps) == (captions, steps)
    assert (config.optim.warmup, config.optim.learning_rate) == (warmup, peak)
    assert config.images_per_caption == 4
    assert config.optim.clip_norm is None


@pytest.mark.parametrize("name", ["synclr_vitb16", "synclr_vitl14"])
def test_losses_of_the_final_runs_are_the_papers(name: str) -> None:
    objective = SynCLR.settings_of(load(name))
    assert objective == ContrastiveConfig(contrastive_chunk=1024), "the defaults"
    assert objective.temperature == 0.08
    assert (objective.masked_images, objective.masked_patches) == (0.5, 0.5)
    assert (objective.teacher_temperature, objective.sinkhorn_iterations) == ((0.04, 0.07), 3)
    head, prototypes = objective.contrastive_head, objective.prototype_head
    assert (head.norm, head.hidden, head.out) == ("bn", 4096, 256)
    assert (prototypes.hidden, prototypes.bottleneck) == (2048, 256)
    assert prototypes.num_prototypes == 65_536


def test_the_large_encoder_is_vit_l_14() -> None:
    config = load("synclr_vitl14")
    shape = config.model
    assert (shape.patch_size, shape.width, shape.depth, shape.num_heads) == (14, 1024, 24, 16)
    assert (shape.drop_path, shape.num_patches, config.crops.local_size) == (0.4, 256, 98)


def test_ablations_differ_only_in_what_they_compare() -> None:
    reference = load("ablation_synclr").model_dump()
    expected: dict[str, dict[str, Any]] = {
        "ema_multicrop": {"ibot_weight": 0.0},
        "ema_ibot": {"num_local": 0},
        "ema": {"ibot_weight": 0.0, "num_local": 0},
        "stablerep": {"teacher": False, "ibot_weight": 0.0, "num_local": 0},
        "simclr": {
            "teacher": False,
            "ibot_weight": 0.0,
            "positives": "image",
            "num_global": 2,
            "num_local": 0,
        },
    }
    for name, changes in expected.items():
        config = load(f"ablation_{name}").model_dump()
        differing = {
            key: value
            for section in ("objective", "crops")
            for key, value in config[section].items()
            if value != reference[section][key] and key != "local_size"
        }
        assert differing == changes
        rest = set(config) - {"objective", "crops"}
        assert all(config[key] == reference[key] for key in rest), name
