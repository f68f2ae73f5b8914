"""A whole step against its definition: every setting has its effect.

The loss terms are computed again in float64 from the same networks, with loops and dense matrices.
"""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.gradients import exact_networks, step_batch, tiny_config
from tests.support.image_shards import write_image_captions, write_images
from tests.support.slow_losses import slow_multi_positive_loss, slow_sinkhorn
from tests.support.training_runs import flat
from trainer import distributed
from trainer.config import TrainConfig
from trainer.data.batch import Batch, hex_ids
from trainer.data.photometric import augment
from trainer.losses.ibot import ibot_loss
from trainer.objectives.micro_batch import step_masks
from trainer.objectives.registry import build_networks, build_objective
from trainer.objectives.synclr import SynCLR
from trainer.training.errors import NotFiniteError
from trainer.training.step import Training
from transforms.core.seeding import derive

STEP = 3
UNUSUAL: dict[str, Any] = {
    "crops": {"num_local": 3, "num_global": 2},
    "model": {"drop_path": 0.0},
    "objective": {
        "temperature": 0.3,
        "student_temperature": 0.4,
        "teacher_temperature": [0.02, 0.1],
        "teacher_temperature_steps": 4,
        "sinkhorn_iterations": 2,
        "masked_images": 0.75,
        "masked_patches": 0.25,
    },
}
TEACHER_TEMPERATURE = 0.08
"""A step at three quarters of the training."""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_images(tmp_path / "images")
    write_image_captions(tmp_path / "captions")
    return tmp_path


def tokens_of(network: Any, images: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return tokens [N, 1 + P, D] of images whose masked patches are hidden."""
    encoder = network.encoder
    patches = encoder.patch_embed(images)  # [N, H / patch, W / patch, D]
    if mask is not None:
        patches[mask.view(patches.shape[:3])] = network.mask_token
    tokens: Tensor = encoder.norm(encoder.blocks(encoder._pos_embed(patches)))
    return tokens


def masks_of(config: TrainConfig, batch: Batch, step: int) -> Tensor:
    """Return masks, bool [N * M * G, P]: one patch of four in 12 of 16 crops."""
    captions = config.captions_per_batch
    masks = step_masks(
        batch,
        first_position=step * captions,
        captions_per_batch=captions,
        share=SynCLR.settings_of(config).masked_images,
        seed=derive(config.seed, "masked images", step),
    ).masks
    assert sorted(masks.sum(dim=1).tolist()) == [0] * 4 + [1] * 12
    return masks


@torch.no_grad()
def terms_by_definition(
    config: TrainConfig, student: Any, teacher: Any, batch: Batch, step: int
) -> dict[str, float]:
    """Return the unweighted loss terms of SynCLR."""
    settings = SynCLR.settings_of(config)
    views = [
        augment(
            pixels, draws, config.photometric, mean=config.model.mean, std=config.model.std
        ).double()
        for pixels, draws in (
            (batch.crops.global_pixels, batch.crops.global_draws),
            (batch.crops.local_pixels, batch.crops.local_draws),
        )
    ]
    mask = masks_of(config, batch, step)
    seen, whole = tokens_of(student, views[0], mask), tokens_of(teacher, views[0])
    keys = teacher.projector(whole[:, 0])
    kinds = [seen[:, 0], tokens_of(student, views[1])[:, 0]]
    if settings.contrastive_head.statistics == "together":
        both = student.predictor(student.projector(torch.cat(kinds)))
        anchors, local_anchors = both[: len(seen)], both[len(seen) :]
    else:
        anchors, local_anchors = (student.predictor(student.projector(kind)) for kind in kinds)

    ids = batch.caption_ids.repeat_interleave(2 * 2)  # 2 images of a caption, 2 crops of an image.
    local_ids = batch.caption_ids.repeat_interleave(2 * 3)
    own_key, none = torch.arange(len(ids)), torch.full((len(local_ids),), -1)

    logits = student.prototype_head.prototypes(student.prototype_head(seen[:, 1:][mask]))
    wanted = teacher.prototype_head.prototypes(teacher.prototype_head(whole[:, 1:][mask]))
    targets = slow_sinkhorn(wanted, TEACHER_TEMPERATURE, settings.sinkhorn_iterations)
    crop, _ = mask.nonzero(as_tuple=True)
    return {
        "global": slow_multi_positive_loss(anchors, keys, ids, ids, settings.temperature, own_key),
        "local": slow_multi_positive_loss(
            local_anchors, keys, local_ids, ids, settings.temperature, none
        ),
        "ibot": float(ibot_loss(logits, targets, crop, temperature=settings.student_temperature)),
    }


@pytest.mark.parametrize("statistics", ["together", "apart"])
def test_a_step_is_its_definition(run: Path, statistics: str) -> None:
    head = {"statistics": statistics, "hidden": 16, "out": 8}
    objective = {**UNUSUAL["objective"], "contrastive_head": head}
    config = tiny_config(run, **{**UNUSUAL, "objective": objective})
    student, teacher = exact_networks(config)
    batch = step_batch(config, STEP)
    expected = terms_by_definition(config, student, teacher, batch, STEP)
    terms = build_objective(config, student, teacher).backward(batch, STEP)
    found = {name: float(term) for name, term in terms.items()}
    assert found == pytest.approx({"loss": sum(expected.values()), **expected}, rel=1e-6)


def other_objective(kind: str) -> dict[str, Any]:
    """Return the settings of an objective without anything optional."""
    settings: dict[str, dict[str, Any]] = {
        "contrastive": {"ibot_weight": 0.0},
        "clip": {"text": {"width": 8, "depth": 1, "num_heads": 2, "out": 6}},
    }
    return {"kind": kind, **settings.get(kind, {})}


@pytest.mark.parametrize("kind", ["contrastive", "supervised", "clip"])
def test_drop_path_is_at_work_and_another_in_each_step(run: Path, kind: str) -> None:
    losses = []
    for rate, step in ((0.0, 0), (0.0, 1), (0.5, 0), (0.5, 0), (0.5, 1)):
        model, crops = {"drop_path": rate}, {"num_local": 0}
        config = tiny_config(run, model=model, crops=crops, objective=other_objective(kind))
        objective = build_objective(config, *exact_networks(config))
        batch = step_batch(config, 0)
        batch = dataclasses.replace(batch, positions=batch.positions + step * len(batch.positions))
        losses.append(float(objective.backward(batch, step)["loss"]))
    without, without_too, dropped, again, other = losses
    assert without == without_too
    assert dropped == again
    assert len({without, dropped, other}) == 3


@pytest.mark.parametrize("kind", ["contrastive", "supervised", "clip"])
def test_the_seed_decides_all_weights(run: Path, kind: str) -> None:
    settings = {"objective": other_objective(kind), "crops": {"num_local": 0}}
    first, same, other = (
        build_networks(tiny_config(run, seed=seed, **settings))[0].state_dict()
        for seed in (1, 1, 2)
    )
    for name, value in first.items():
        assert torch.equal(value, same[name]), name
        assert value.ndim < 2 or not torch.equal(value, other[name]), name


def test_the_teacher_drops_nothing() -> None:
    _, teacher = exact_networks(tiny_config("unused", model={"drop_path": 0.9}))
    assert teacher is not None
    images = torch.randn(8, 3, 16, 16, dtype=torch.float64)
    assert torch.equal(teacher.forward_features(images), teacher.forward_features(images))


def test_the_gradient_is_clipped_as_a_whole(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(run, optim={"clip_norm": 0.01})
    training = Training(config, torch.device("cpu"))
    norms = []

    def record() -> None:
        gradients = [p.grad for p in training.student.parameters() if p.grad is not None]
        norms.append(float(torch.cat([gradient.flatten() for gradient in gradients]).norm()))

    monkeypatch.setattr(training.optimizer, "step", record)
    training.update(step_batch(config, 0))
    assert norms == pytest.approx([0.01], rel=1e-3)
    assert training.values()["grad_norm"] > 0.1, "before"


def test_the_log_has_the_mean_of_all_ranks_and_the_samples_that_any_replaced(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(run)
    training = Training(config, torch.device("cpu"))
    training.restore({**training.state(), "num_replaced": 4})
    batch = dataclasses.replace(step_batch(config, 0), num_replaced=2)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_reduce", lambda of_this_rank: of_this_rank + 5.0)
    training._record({"loss": torch.tensor(2.0)}, batch)
    values = training.values()
    assert (values["loss"], values["replaced"]) == (3.5, 4 + 2 + 5)
    assert not training._recent, "ids of finite batches are not kept"


def test_the_first_gradient_that_is_not_finite_is_named_and_nothing_moves_after_it(
    run: Path,
) -> None:
    """Also with finite losses, and if a later gradient is not finite either."""
    training = Training(tiny_config(run), torch.device("cpu"))
    token = training.student.get_parameter("mask_token")
    token.register_hook(lambda gradient: gradient * (torch.inf if training.step in (1, 3) else 1))
    batches = [step_batch(training.config, step) for step in range(4)]
    training.update(batches[0])
    before = flat(copy.deepcopy(training.state()))
    for batch in batches[1:]:
        training.update(batch)
    assert training._terms["loss"].isfinite()
    with pytest.raises(NotFiniteError, match="at step 1 is not finite") as raised:
        training.values()
    assert (raised.value.step, raised.value.caption_ids) == (1, hex_ids(batches[1].caption_ids))
    for name, value in flat(training.state()).items():
        if torch.is_tensor(value) and "running_" not in name:
            assert torch.equal(value, before[name]), name


UNDECAYED = ("bias", "gain", "cls_token", "pos_embed", "mask_token")


def test_updates_are_adamw_and_then_the_teachers_average(run: Path) -> None:
    """Compared with the formulas, from the gradient of each step's batch."""
    optim: dict[str, Any] = {"learning_rate": 0.04, "warmup": 4, "betas": [0.8, 0.9]}
    constant = {"weight_decay": [0.3, 0.3], "ema_momentum": [0.6, 0.6]}
    config = tiny_config(run, optim={**optim, **constant})
    training, fresh = (Training(config, torch.device("cpu")) for _ in range(2))
    assert training.teacher is not None and fresh.teacher is not None
    assert training.network is training.teacher, "the teacher is the result"
    first = {name: torch.zeros_like(p) for name, p in training.student.named_parameters()}
    second = {name: torch.zeros_like(p) for name, p in training.student.named_parameters()}
    for step in range(4):
        batch, rate = step_batch(config, step), 0.01 * step
        fresh.restore(training.state())
        fresh.student.zero_grad()
        fresh.objective.backward(batch, step)
        training.update(batch)
        found = training.student.state_dict()
        for name, parameter in fresh.student.named_parameters():
            gradient = parameter.grad if parameter.grad is not None else torch.zeros(())
            first[name] = 0.8 * first[name] + 0.2 * gradient
            second[name] = 0.9 * second[name] + 0.1 * gradient.square()
            steepness = second[name] / (1 - 0.9 ** (step + 1))
            change = first[name] / (1 - 0.8 ** (step + 1)) / (steepness.sqrt() + 1e-8)
            decayed = parameter.ndim > 1 and not name.endswith(UNDECAYED)
            kept = 1 - rate * 0.3 if decayed else 1.0
            torch.testing.assert_close(found[name], kept * parameter - rate * change, msg=name)
        before = fresh.teacher.state_dict()
        for name, value in training.teacher.state_dict().items():
            expected = 0.6 * before[name] + 0.4 * found[name]
            torch.testing.assert_close(value, expected, msg=name)
