"""The configs in the repository, and the defaults, are the paper's."""

from pathlib import Path

import pytest

from trainer.config import TrainConfig, data_folder, train_folder
from transforms.core.config import describe, fingerprint_fields, load_config

CONFIGS = Path(__file__).parents[2] / "trainer" / "configs"
TRAININGS = sorted(path for path in CONFIGS.glob("*.yaml") if "evaluate" not in path.name)


@pytest.mark.parametrize("path", TRAININGS, ids=lambda path: path.name)
def test_every_config_loads(path: Path) -> None:
    assert load_config(TrainConfig, str(path)).run.startswith("runs/")


def test_the_final_run_is_the_papers() -> None:
    config = load_config(TrainConfig, str(CONFIGS / "synclr_vitb16.yaml"), ["run=gs://bucket/run"])
    assert (config.captions_per_batch, config.steps, config.optim.warmup) == (8192, 500_000, 80_000)
    assert config.model.num_patches == 196
    assert config.objective.temperature == 0.08
    assert config.objective.contrastive_head.norm == "bn"
    assert config.objective.prototype_head.num_prototypes == 65_536
    assert train_folder(config) == "gs://bucket/run/train"
    assert data_folder(config) == "gs://bucket/run/images"
    assert data_folder(config.model_copy(update={"data": "elsewhere"})) == "elsewhere"


def test_what_only_changes_speed_or_place_is_not_in_the_fingerprint() -> None:
    fields = fingerprint_fields(TrainConfig(run="here")).keys()
    assert {"seed", "steps", "model.width", "optim.learning_rate", "precision"} <= fields
    free = {"run", "data", "device", "accumulation", "log_every", "loader.num_workers"}
    assert not (free | {"checkpoint.every_s"}) & fields


def test_every_key_has_help() -> None:
    lines = describe(TrainConfig).splitlines()
    keys = [number for number, line in enumerate(lines) if not line.startswith("      ")]
    undescribed = [lines[n] for n in keys if n + 1 in keys or n + 1 == len(lines)]
    assert undescribed == []
