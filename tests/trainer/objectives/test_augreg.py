"""AugReg: the loss against the definition of mixup, draws that belong to samples, settings."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.support.gradients import (
    assert_same,
    step_batch,
    step_gradients,
    tiny_config,
)
from tests.support.image_shards import UNCHANGED, write_image_captions, write_images
from trainer.config import TrainConfig
from trainer.objectives.augreg import AugReg
from trainer.objectives.registry import build_networks, build_objective, objective_of
from trainer.objectives.supervised import Classifier
from trainer.training.session import check_ranks
from transforms.core.errors import ConfigError

AUGREG = {"kind": "augreg"}


def config_of(run: Path | str, **changes: Any) -> TrainConfig:
    crops = {"num_local": 0, "num_global": 2}
    rest = {"crops": crops, "model": {"drop_path": 0.0}, "objective": AUGREG, **changes}
    return tiny_config(run, **rest)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_images(tmp_path / "images")
    write_image_captions(tmp_path / "captions")
    return tmp_path


def test_the_loss_is_that_of_mixed_pairs_of_captions(run: Path) -> None:
    config = config_of(run, objective={**AUGREG, "dropout": 0.0})
    student, _ = build_networks(config)
    assert isinstance(student, Classifier)
    student.classes.weight.data *= 100  # So that the images count.
    objective = build_objective(config, student, None)
    assert isinstance(objective, AugReg)
    batch = step_batch(config, 0)
    images = objective._augment(batch.crops.global_pixels, batch.crops.global_draws)
    labels = functional.one_hot(batch.targets[:, 0], 3).double()
    # Captions 0 and 1 are partners, and 2 and 3; each has 2 images with 2 crops.
    captions = images.unflatten(0, (4, 4))
    partners = captions[[1, 0, 3, 2]]
    step, share = 0, 1.0
    while share > 0.8:  # Of 0.5 to 1: the mixture counts.
        step += 1
        _, targets = objective._mixed(images, batch.targets[:, 0].repeat_interleave(4), step)
        share = next(float(row.max()) for row in targets if 0 < row.max() < 1)
    # The maximum may be the partner's share, but then each pair changes places: the same mean.
    mixed = (share * captions + (1 - share) * partners).flatten(0, 1)
    logits = student(mixed).logits.double().log_softmax(dim=1)
    soft = (share * labels + (1 - share) * labels[[1, 0, 3, 2]]).repeat_interleave(4, dim=0)
    expected = -(soft * logits).sum(dim=1).mean().item()
    assert objective.backward(batch, step)["loss"].item() == pytest.approx(expected, abs=1e-5)
    plain = functional.cross_entropy(student(images).logits, labels.argmax(1).repeat_interleave(4))
    assert plain.item() != pytest.approx(expected, abs=1e-2)


def test_the_share_of_a_step_follows_the_beta_distribution(run: Path) -> None:
    config = config_of(run)
    objective = build_objective(config, *build_networks(config))
    assert isinstance(objective, AugReg)
    pixels = torch.zeros(8, 3, 1, 1)
    pixels[:4] = 1.0  # Of the first caption.
    labels = torch.tensor([0] * 4 + [1] * 4)
    shares = np.array([objective._mixed(pixels, labels, s)[0][0, 0].item() for s in range(400)])
    again = [objective._mixed(pixels, labels, s)[0][0, 0].item() for s in range(3)]
    assert np.array_equal(shares[:3], again)
    # Beta(a, a): mean 1/2, variance 1 / (8 a + 4).
    assert shares.mean() == pytest.approx(0.5, abs=0.06)
    assert shares.var() == pytest.approx(1 / (8 * 0.8 + 4), rel=0.2)


def test_with_everything_off_it_is_plain_cross_entropy(run: Path) -> None:
    off = {**AUGREG, "num_ops": 0, "mixup": 0.0, "dropout": 0.0}
    plain = config_of(run, objective={"kind": "supervised"}, photometric=UNCHANGED)
    assert_same(step_gradients(plain, 0), step_gradients(config_of(run, objective=off), 0))
    batch, changed = step_batch(plain, 0), step_batch(config_of(run), 0)
    assert not torch.equal(batch.crops.global_pixels, changed.crops.global_pixels)
    assert not changed.crops.global_draws[:, [0, 1, 10, 11, 12]].any(), "no colour is changed"


def test_micro_batches_and_recomputed_blocks_change_nothing(run: Path) -> None:
    config = config_of(run, model={"drop_path": 0.4})
    expected = step_gradients(config, 3)
    parts = config.model_copy(update={"accumulation": 2})
    assert_same(expected, step_gradients(parts, 3))
    execution = config.execution.model_copy(update={"recompute": "blocks"})
    again = config.model_copy(update={"execution": execution})
    assert_same(expected, step_gradients(again, 3))
    other = step_gradients(config, 4)
    assert other[0]["loss"] != expected[0]["loss"]


def test_dropout_belongs_to_a_position(run: Path) -> None:
    config = config_of(run)
    objective = build_objective(config, *build_networks(config))
    assert isinstance(objective, AugReg)
    batch = step_batch(config, 0)
    seeds = objective._dropout_seeds(batch)
    assert len(set(seeds)) == 16
    order = torch.tensor([2, 3, 0, 1])
    turned = objective._dropout_seeds(replace(batch, positions=batch.positions[order]))
    assert turned == seeds[8:] + seeds[:8]


def test_settings_that_do_not_fit_are_reported(run: Path) -> None:
    odd = config_of(run, captions_per_batch=3)
    with pytest.raises(ConfigError, match=r"multiple of 2, .* times 2 captions that are"):
        check_ranks(odd)
    check_ranks(config_of(run, captions_per_batch=3, objective={**AUGREG, "mixup": 0}))
    with_colours = config_of(run, photometric={"jitter": 0.5})
    (sentence,) = objective_of(with_colours).warnings(with_colours)
    assert "photometric has no effect" in sentence
    with pytest.raises(ValueError, match=r"crops\.num_local is 1: expected 0"):
        config_of(run, crops={"num_local": 1})
