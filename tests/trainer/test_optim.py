"""Parameters that decay, and the values that the schedule sets."""

from typing import Any

import pytest
import torch

from tests.support.gradients import tiny_config
from trainer.objectives.registry import build_networks
from trainer.optim import OptimConfig, build_optimizer, is_decayed, set_schedule


def test_only_weights_of_layers_decay() -> None:
    config = tiny_config("unused")
    student, _ = build_networks(config)
    decayed = {name for name, value in student.named_parameters() if is_decayed(name, value)}
    kept = {name for name, _ in student.named_parameters()} - decayed
    assert {
        "mask_token",
        "encoder.cls_token",
        "encoder.pos_embed",
        "encoder.norm.weight",
        "encoder.blocks.0.norm1.bias",
        "encoder.blocks.0.attn.qkv.bias",
        "prototype_head.prototypes.gain",
        "projector.1.weight",
    } <= kept
    assert {
        "encoder.patch_embed.proj.weight",
        "encoder.blocks.0.attn.qkv.weight",
        "encoder.blocks.1.mlp.fc2.weight",
        "projector.0.weight",
        "predictor.0.weight",
        "prototype_head.mlp.0.weight",
        "prototype_head.prototypes.direction",
    } <= decayed
    optimizer = build_optimizer(student, config.optim)
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    assert sizes == [len(decayed), len(kept)]


def test_the_schedule_reaches_both_groups() -> None:
    module = torch.nn.Linear(2, 2)
    config = OptimConfig(learning_rate=1e-3, warmup=10, weight_decay=(0.1, 0.3), betas=(0.8, 0.95))
    optimizer = build_optimizer(module, config)
    assert set_schedule(optimizer, config, 55, 100) == pytest.approx(5e-4)
    decayed, kept = optimizer.param_groups
    assert decayed["lr"] == kept["lr"] == pytest.approx(5e-4)
    assert decayed["betas"] == kept["betas"] == (0.8, 0.95)
    assert decayed["weight_decay"] == pytest.approx(0.2156, abs=1e-4), "past the half"
    assert kept["weight_decay"] == 0.0


@pytest.mark.parametrize("wrong", [{"learning_rate": 0.0}, {"warmup": -1}, {"betas": (0.9, 1.0)}])
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=f"{name}.*\n.*should be"):
        OptimConfig(**wrong)
