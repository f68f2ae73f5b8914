"""The paper's runs: values in the files of trainings; a step of our own small configs.

`tests/test_paper_runs.py` runs the rows of the table in docs/train.md.
"""

from pathlib import Path
from typing import Any

import pytest
import timm
from torch import Tensor

from tests.support.gradients import step_gradients
from tests.support.image_shards import write_images
from tests.support.paper_runs import paper_runs, small_training
from tests.support.paths import TRAINER_CONFIGS
from trainer.config import TrainConfig, batch_images
from trainer.data import crops
from trainer.data.sampler import RankSampler
from trainer.data.shard_reader import ShardReader
from trainer.objectives.augreg import AugRegConfig
from trainer.objectives.synclr import ContrastiveConfig, SynCLR
from trainer.training.session import open_samples, rank_batches
from transforms.core.config import load_config

CONFIGS = TRAINER_CONFIGS
TRAININGS = sorted(path.stem for path in CONFIGS.glob("*.yaml") if "evaluate" not in path.stem)
RUNS = paper_runs()
ABLATIONS = [name for name in TRAININGS if name.startswith("ablation_")]


def load(name: str, *overrides: str) -> TrainConfig:
    return load_config(TrainConfig, str(CONFIGS / f"{name}.yaml"), overrides)


@pytest.mark.parametrize("name", sorted(set(TRAININGS) - {run.training.name for run in RUNS}))
def test_a_step_of_our_own_at_a_small_size(name: str, tmp_path: Path) -> None:
    write_images(tmp_path / "images", images_per_caption=4)
    config = small_training(str(CONFIGS / f"{name}.yaml"), f"run={tmp_path}")
    terms, gradients = step_gradients(config, 0)
    assert all(term.isfinite() for term in terms.values())
    assert gradients["encoder.patch_embed.proj.weight"].abs().sum() > 0


@pytest.mark.parametrize(
    ("name", "captions", "steps", "warmup", "peak"),
    [
        ("synclr_vitb16", 8192, 500_000, 80_000, 2e-3),
        ("synclr_vitl14", 8192, 500_000, 80_000, 1.5e-3),
        ("scaling_vitb16", 2048, 300_000, 10_000, 2e-3),
        ("scaling_vitl14", 2048, 300_000, 10_000, 1.5e-3),
        ("table5_simclr", 2048, 85_000, 10_000, 2e-3),
        ("table5_synclr", 2048, 85_000, 10_000, 2e-3),
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


def test_clip_takes_32_epochs_of_150_million_captions() -> None:
    config = load("clip_vitb16")
    assert (config.objective.kind, config.captions_per_batch) == ("clip", 32_768)
    assert config.steps == 32 * 150_000_000 // 32_768
    assert batch_images(config) == 32_768, "one image of each caption"


def test_clip_reads_one_image_of_a_caption_another_in_some_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path / "images", images_per_caption=4)
    config = small_training(str(CONFIGS / "clip_vitb16.yaml"), f"run={tmp_path}")
    samples = open_samples(config)
    images = {image: n for sample in samples.reader for n, image in enumerate(sample.images)}
    decoded: list[int] = []
    files: list[bytes] = []
    read_file = ShardReader._read

    def read(reader: ShardReader, shard: int, offset: int, size: int) -> bytes:
        files.append(read_file(reader, shard, offset, size))
        return files[-1]

    def decode(image: bytes) -> Tensor:
        decoded.append(images[image])
        return crops.decode(image)

    monkeypatch.setattr("trainer.data.batch.decode", decode)
    monkeypatch.setattr(ShardReader, "_read", read)
    for step in range(30):  # Ten epochs of three steps.
        next(rank_batches(config, samples, range(step, step + 1)))
        assert len(decoded) == 4 * (step + 1), "one for each caption"
    assert set(decoded) == {0, 1, 2, 3}
    assert [images[file] for file in files if file in images] == decoded, "no other image is read"
    again = decoded.copy()
    decoded.clear()
    for ranks in (1, 2):  # The draws belong to positions, whatever the number of ranks.
        for rank in range(ranks):
            samples.batch(RankSampler(samples.sampler, 4, rank, ranks)(29))
    assert decoded == 2 * again[-4:]


def test_the_supervised_row_of_table_5_has_the_augreg_recipe() -> None:
    """As the name of their checkpoint for ViT-B/16 on ImageNet-1k says."""
    config = load("table5_supervised")
    known = timm.get_pretrained_cfg("vit_base_patch16_224.augreg_in1k").url
    assert "300ep-lr_0.001-aug_strong2-wd_0.1-do_0.1-sd_0.1-" in known
    objective, optim = config.objective, config.optim
    assert isinstance(objective, AugRegConfig)
    assert (objective.num_ops, objective.magnitude, objective.mixup) == (2, 20, 0.8)  # strong2
    assert (objective.dropout, config.model.drop_path) == (0.1, 0.1)
    assert (optim.learning_rate, optim.weight_decay) == (1e-3, (0.1, 0.1))
    assert (optim.warmup, optim.clip_norm, optim.betas) == (10_000, 1.0, (0.9, 0.999))
    assert (config.captions_per_batch, config.steps) == (2048, 85_000)
    assert config.model.mean == config.model.std == (0.5, 0.5, 0.5)


def test_simclr_and_synclr_of_table_5_differ_in_what_is_positive() -> None:
    simclr, synclr = load("table5_simclr"), load("table5_synclr")
    for config in (simclr, synclr):
        objective = SynCLR.settings_of(config)
        assert (objective.teacher, objective.ibot_weight, config.crops.num_local) == (False, 0, 0)
    assert SynCLR.settings_of(simclr).positives == "image"
    assert SynCLR.settings_of(synclr).positives == "caption"
    assert (simclr.crops.num_global, synclr.crops.num_global) == (2, 1)
    stablerep = load("ablation_stablerep").model_dump()
    assert synclr.model_dump() == {**stablerep, "run": synclr.run}


@pytest.mark.parametrize("name", ["synclr_vitl14", "scaling_vitl14"])
def test_the_large_encoder_is_vit_l_14(name: str) -> None:
    config = load(name)
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
