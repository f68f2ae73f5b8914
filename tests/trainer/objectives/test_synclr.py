"""SynCLR: excluded keys, sums over micro-batches, and the paper's other contrastive objectives."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.gradients import assert_same, step_gradients, tiny_config
from tests.support.image_shards import write_images
from trainer.losses import fused
from trainer.losses.contrastive import multi_positive_loss
from trainer.models.student_teacher import update_teacher
from trainer.objectives import synclr
from trainer.objectives.synclr import ContrastiveConfig, SynCLR
from trainer.training.session import open_samples, rank_batches
from trainer.training.step import Training

STABLEREP: dict[str, Any] = {
    "objective": {"teacher": False, "ibot_weight": 0.0},
    "crops": {"num_local": 0},
    "model": {"drop_path": 0.0},
}
SIMCLR: dict[str, Any] = {
    **STABLEREP,
    "objective": {"teacher": False, "ibot_weight": 0.0, "positives": "image"},
    "crops": {"num_local": 0, "num_global": 2},
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_images(tmp_path / "images")
    return tmp_path


def calls_of_loss(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """Record the arguments of the contrastive loss."""
    calls: list[dict[str, Tensor]] = []

    def record(anchors: Tensor, keys: Tensor, *ids: Tensor, **settings: Any) -> Tensor:
        calls.append({"anchor_ids": ids[0], "key_ids": ids[1], "exclude": settings["exclude"]})
        return multi_positive_loss(anchors, keys, *ids, **settings)

    monkeypatch.setattr(synclr, "multi_positive_loss", record)
    return calls


def test_global_anchors_leave_out_their_own_image_and_local_anchors_nothing(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = calls_of_loss(monkeypatch)
    step_gradients(tiny_config(run, crops={"num_local": 3}, accumulation=2), 0)
    first_globals, first_locals, second_globals, _ = calls
    assert first_globals["exclude"].tolist() == [0, 1, 2, 3]
    assert second_globals["exclude"].tolist() == [4, 5, 6, 7]
    assert first_locals["exclude"] is None
    ids = first_globals["key_ids"]
    assert ids[0::2].equal(ids[1::2]), "two images of each caption, one after the other"
    assert first_globals["anchor_ids"].equal(ids[:4])
    assert first_locals["anchor_ids"].equal(ids[:4].repeat_interleave(3))


def test_simclr_finds_the_other_crop_of_the_image_alone(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = calls_of_loss(monkeypatch)
    step_gradients(tiny_config(run, **SIMCLR), 1)
    (call,) = calls
    assert len(set(call["key_ids"].tolist())) == 8
    assert call["key_ids"][0::2].equal(call["key_ids"][1::2])
    assert call["exclude"].tolist() == list(range(16))


def test_one_crop_of_one_image_has_no_positive_and_no_loss(tmp_path: Path) -> None:
    write_images(tmp_path / "images", images_per_caption=1)
    terms, gradients = step_gradients(tiny_config(tmp_path, images_per_caption=1, **STABLEREP), 0)
    assert terms["loss"] == 0.0
    assert all(gradient.isfinite().all() for gradient in gradients.values())


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"loss", "global", "local", "ibot"}),
        (STABLEREP, {"loss", "global"}),
        (SIMCLR, {"loss", "global"}),
        ({"objective": {"ibot_weight": 0.0}, "crops": {"num_local": 0}}, {"loss", "global"}),
        ({"crops": {"num_local": 0}}, {"loss", "global", "ibot"}),
        ({"objective": {"ibot_weight": 0.0}}, {"loss", "global", "local"}),
    ],
    ids=["synclr", "stablerep", "simclr", "ema", "ema-ibot", "ema-multicrop"],
)
def test_the_papers_objectives_have_their_terms(
    run: Path, settings: dict[str, Any], expected: set[str]
) -> None:
    config = tiny_config(run, **settings)
    terms, gradients = step_gradients(config, 0)
    terms.pop("feature_std", None)
    assert terms.keys() == expected
    total = sum(float(term) for name, term in terms.items() if name != "loss")
    assert float(terms["loss"]) == pytest.approx(total)
    assert all(math.isfinite(float(term)) for term in terms.values())
    unused = {name for name, gradient in gradients.items() if not gradient.abs().sum()}
    assert all(name.endswith("bias") for name in unused), unused
    has_predictor = any(name.startswith("predictor") for name in gradients)
    assert has_predictor == SynCLR.settings_of(config).teacher


def test_weights_scale_their_terms(run: Path) -> None:
    weights = {"global_weight": 0.5, "local_weight": 2.0, "ibot_weight": 3.0}
    terms, _ = step_gradients(tiny_config(run, objective=weights), 0)
    expected = 0.5 * terms["global"] + 2.0 * terms["local"] + 3.0 * terms["ibot"]
    torch.testing.assert_close(terms["loss"], expected)


@pytest.mark.parametrize("accumulation", [2, 4])
def test_micro_batches_have_the_gradient_of_the_whole(run: Path, accumulation: int) -> None:
    head = {"norm": "ln", "hidden": 16, "out": 8}
    settings: dict[str, Any] = {
        "objective": {"contrastive_head": head},
        "model": {"drop_path": 0.4},
    }
    whole = step_gradients(tiny_config(run, **settings), 1)
    parts = step_gradients(tiny_config(run, accumulation=accumulation, **settings), 1)
    assert_same(whole, parts)


def test_chunked_losses_have_the_gradient_of_the_whole(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = {"drop_path": 0.0}
    whole = step_gradients(tiny_config(run, model=model, objective={"ibot_chunk": None}), 1)
    most: dict[str, int] = {}
    run_chain = fused.run

    def record(chain: Any, rows: tuple[Tensor, ...], *others: Tensor, compiled: bool) -> Any:
        most[chain.__name__] = max(most.get(chain.__name__, 0), len(rows[0]))
        return run_chain(chain, rows, *others, compiled=compiled)

    monkeypatch.setattr(fused, "run", record)
    chunks = {"ibot_chunk": 2, "contrastive_chunk": 3}
    assert_same(whole, step_gradients(tiny_config(run, model=model, objective=chunks), 1))
    sinkhorn = {"_column_sums": 2, "_column_sums_of_softmax": 2}
    assert most.items() >= {"_row_losses": 3, "_cross_entropy": 2, **sinkhorn}.items()


def test_the_teacher_is_the_students_copy_and_then_its_average() -> None:
    config = tiny_config("unused")
    student, teacher = SynCLR.build_networks(config)
    assert teacher is not None
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert teacher.predictor is None
    assert teacher.training, "its batch norms use the batch"
    values = student.state_dict()
    assert all(torch.equal(value, values[name]) for name, value in teacher.state_dict().items())
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    with torch.no_grad():
        for value in student.state_dict().values():
            value += 1.0
    update_teacher(teacher, student, 0.1)
    for name, value in teacher.state_dict().items():
        torch.testing.assert_close(value, before[name] + 0.1, msg=name)
    assert any("running_mean" in name for name in before), "buffers are averaged, too"


@pytest.mark.parametrize("accumulation", [1, 4])
def test_the_teacher_moves_once_per_optimiser_step(
    run: Path, accumulation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares: list[float] = []

    def record(teacher: Any, student: Any, share: Tensor) -> None:
        shares.append(float(share))
        update_teacher(teacher, student, share)

    monkeypatch.setattr("trainer.training.step.update_teacher", record)
    momentum = {"ema_momentum": [0.5, 0.9]}
    config = tiny_config(run, accumulation=accumulation, optim=momentum, steps=8)
    training = Training(config, torch.device("cpu"))
    for batch in rank_batches(config, open_samples(config), range(5)):
        training.update(batch)
    assert len(shares) == 5
    assert (shares[0], shares[4]) == pytest.approx((0.5, 0.3)), "the start, and half of the way"


def test_ibot_without_a_teacher_is_refused() -> None:
    with pytest.raises(ValueError, match="without one, set objective"):
        ContrastiveConfig(teacher=False)
