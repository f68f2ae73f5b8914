"""The signs of collapse: closed forms, and a training whose teacher is broken on purpose."""

import json
import math
from pathlib import Path

import pytest
import torch

from tests.trainer.running import command, make_run
from trainer.collapse import embedding_signs, target_signs
from trainer.ibot import teacher_targets


def test_embeddings_that_point_everywhere_and_nowhere() -> None:
    everywhere = torch.randn(4000, 32, generator=torch.Generator().manual_seed(0))
    assert float(embedding_signs(7 * everywhere)["feature_std"]) == pytest.approx(1.0, abs=0.02)
    alike = torch.ones(100, 32) * torch.rand(100, 1)
    assert float(embedding_signs(alike)["feature_std"]) == pytest.approx(0.0, abs=1e-5)


def signs(logits: torch.Tensor, temperature: float = 1.0) -> dict[str, float]:
    targets = teacher_targets(
        logits, torch.eye(logits.shape[1]), temperature=temperature, iterations=0
    )
    return {name: float(value) for name, value in target_signs(targets).items()}


def test_targets_that_say_nothing_something_and_always_the_same() -> None:
    nothing = signs(torch.zeros(10, 5))
    assert nothing == {"target_entropy": pytest.approx(1.0), "prototypes_used": pytest.approx(1.0)}
    certain = signs(100 * torch.eye(5).repeat(2, 1))
    assert certain == {"target_entropy": pytest.approx(0.0), "prototypes_used": pytest.approx(1.0)}
    same = signs(100 * torch.eye(5)[[2] * 10])
    assert same == {"target_entropy": pytest.approx(0.0), "prototypes_used": pytest.approx(0.2)}
    halves = signs(torch.tensor([[0.0, 0.0, -100.0, -100.0]] * 3))
    assert halves["target_entropy"] == pytest.approx(math.log(2) / math.log(4))
    assert halves["prototypes_used"] == pytest.approx(2 / 3)
    none = signs(torch.zeros(0, 5))
    assert none == {"target_entropy": 0.0, "prototypes_used": 0.0}


def logged(run: Path) -> dict[str, list[float]]:
    rows = [json.loads(line) for line in (run / "train" / "metrics.jsonl").read_text().splitlines()]
    return {name: [row[name] for row in rows] for name in rows[0]}


def test_a_teacher_with_a_broken_temperature_is_seen(tmp_path: Path) -> None:
    healthy, hot = (make_run(tmp_path / name) for name in ("healthy", "hot"))
    assert command(healthy) == 0
    assert command(hot, "objective.teacher_temperature=[100,100]") == 0
    assert all(entropy < 0.95 for entropy in logged(healthy)["target_entropy"])
    assert all(entropy > 0.999 for entropy in logged(hot)["target_entropy"])
    assert all(0.1 < std < 1.5 for std in logged(healthy)["feature_std"])
