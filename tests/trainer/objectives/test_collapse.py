"""Collapse metrics: closed forms, collapsed networks, and a teacher broken on purpose."""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.support.gradients import tiny_config
from tests.support.image_shards import TINY_TRAINING, write_image_captions, write_images
from tests.support.training_runs import command, write_config
from trainer.losses.ibot import teacher_targets
from trainer.models.heads import ContrastiveHeadConfig
from trainer.objectives.collapse import NUM_TOKENS, feature_metrics, target_metrics
from trainer.objectives.registry import build_networks, build_objective
from trainer.training.session import open_samples, rank_batches


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def feature_std(cls_tokens: Tensor) -> float:
    return float(feature_metrics(cls_tokens)["feature_std"])


def test_tokens_that_point_everywhere_and_nowhere() -> None:
    assert feature_std(7 * normal(4000, 32)) == pytest.approx(1.0, abs=0.02)
    assert feature_std(torch.ones(100, 32) * torch.rand(100, 1)) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("share", [1.0, 0.1, 0.01, 0.001])
def test_tokens_that_differ_by_a_share_of_what_they_have_in_common(share: float) -> None:
    tokens = normal(768) + share * normal(1000, 768, seed=1)
    assert feature_std(tokens) == pytest.approx(share / math.hypot(1, share), rel=0.03)


ALONE: dict[str, Any] = {"teacher": False, "ibot_weight": 0.0}
TEXT = {"context": 24, "width": 8, "depth": 2, "num_heads": 2, "out": 6}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "synclr": {},
    "synclr in micro-batches": {"accumulation": 2},
    "stablerep": {"objective": ALONE},
    "supervised": {"objective": {"kind": "supervised"}},
    "clip": {"objective": {"kind": "clip", "text": TEXT}},
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_batch_norms_do_not_hide_an_encoder_that_collapses(tmp_path: Path, name: str) -> None:
    write_images(tmp_path / "images")
    write_image_captions(tmp_path / "captions")
    config = tiny_config(tmp_path, crops={"num_local": 0}, **OBJECTIVES[name])
    head = getattr(config.objective, "contrastive_head", ContrastiveHeadConfig())
    assert head.norm == "bn"
    student, teacher = build_networks(config)
    objective = build_objective(config, student, teacher)
    batch = next(rank_batches(config, open_samples(config), range(1)))
    found = []
    for share in (1.0, 0.1, 0.01, 0.001):
        norm: Any = (teacher or student).encoder.norm
        torch.nn.init.constant_(norm.weight, share)
        torch.nn.init.ones_(norm.bias)
        objective.backward(batch, 0)
        found.append(float(objective.collapse_metrics["feature_std"]))
    assert found[0] > 0.05
    for before, after in itertools.pairwise(found):
        assert after == pytest.approx(before / 10, rel=0.7)


NUM_PROTOTYPES = 512


def metrics(
    features: Tensor, *, temperature: float = 0.04, iterations: int = 3
) -> dict[str, float]:
    prototypes = functional.normalize(normal(NUM_PROTOTYPES, features.shape[1], seed=9), dim=1)
    targets = teacher_targets(
        functional.normalize(features, dim=1),
        prototypes,
        temperature=temperature,
        iterations=iterations,
    )
    return {name: float(value) for name, value in target_metrics(targets).items()}


def test_sinkhorn_does_not_hide_tokens_that_are_alike() -> None:
    """Sinkhorn-Knopp uses all prototypes equally, whatever the tokens are."""
    assert metrics(torch.ones(64, 32)) == {
        "target_entropy": pytest.approx(1.0),
        "prototypes_used": pytest.approx(1 / 64),
    }
    used = [
        metrics(normal(32) + share * normal(64, 32, seed=1))["prototypes_used"]
        for share in (10.0, 1.0, 0.1, 0.01)
    ]
    assert used == sorted(used, reverse=True)
    assert used[0] > 0.7
    assert used[-1] < 0.05


def test_targets_that_say_nothing_something_and_one_thing() -> None:
    tokens = normal(64, 32)
    assert metrics(tokens, temperature=100.0)["target_entropy"] == pytest.approx(1.0, abs=1e-3)
    assert 0.2 < metrics(tokens)["target_entropy"] < 0.9
    certain = metrics(tokens, temperature=1e-4, iterations=0)
    assert certain["target_entropy"] == pytest.approx(0.0, abs=0.01)
    assert metrics(torch.zeros(0, 32)) == {"target_entropy": 0.0, "prototypes_used": 0.0}


def test_prototypes_are_a_share_of_them_or_of_the_tokens() -> None:
    """Each token equals a prototype; the first tokens of the batch all equal the same one."""

    def used(chosen: list[int], num_prototypes: int) -> float:
        prototypes = torch.eye(num_prototypes)
        targets = teacher_targets(prototypes[chosen], prototypes, temperature=0.04)
        return float(target_metrics(targets)["prototypes_used"])

    assert used([0, 3, 5], 6) == 1.0
    assert used([0, 3, 3, 3], 6) == 0.5
    assert used([0, 1, 2, 3] * 9, 8) == 0.5
    many = [0] * NUM_TOKENS + list(range(3 * NUM_TOKENS))
    assert used(many, 3 * NUM_TOKENS) == pytest.approx(0.75, abs=0.01)


def logged(run: Path, *overrides: str) -> dict[str, list[float]]:
    """Return the metrics of a training with iBOT only: nothing else prevents a collapse."""
    write_images(run / "images", (32, 32))
    write_config(
        run,
        captions_per_batch=16,
        steps=60,
        model={**TINY_TRAINING["model"], "image_size": 24, "width": 48, "num_heads": 4},
        objective={
            "global_weight": 0.0,
            "local_weight": 0.0,
            "contrastive_head": {"hidden": 64, "out": 32},
            "prototype_head": {"hidden": 64, "bottleneck": 32, "num_prototypes": 512},
        },
        optim={"warmup": 10, "learning_rate": 2e-3, "ema_momentum": [0.9, 1.0]},
    )
    assert command(run, *overrides) == 0
    rows = [json.loads(line) for line in (run / "train" / "metrics.jsonl").open()]
    return {name: [row[name] for row in rows] for name in rows[0]}


def test_a_teacher_with_a_broken_temperature_is_seen_in_the_log(tmp_path: Path) -> None:
    healthy = logged(tmp_path / "healthy")
    assert all(entropy < 0.96 for entropy in healthy["target_entropy"])
    assert all(used > 0.1 for used in healthy["prototypes_used"])
    assert healthy["feature_std"][-1] > 0.8 > healthy["feature_std"][0]

    hot = logged(tmp_path / "hot", "objective.teacher_temperature=[100,100]")
    assert all(entropy > 0.999 for entropy in hot["target_entropy"])
    assert hot["prototypes_used"][-1] < 0.1
    assert hot["feature_std"][-1] < 0.3 < hot["feature_std"][0]

    cold = logged(
        tmp_path / "cold",
        "objective.teacher_temperature=[1e-4,1e-4]",
        "objective.sinkhorn_iterations=0",
    )
    assert cold["target_entropy"][-1] < 0.001
    assert cold["prototypes_used"][-1] < 0.1
