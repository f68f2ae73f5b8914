"""Warnings about settings that have no effect, or another one than they seem to have."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.gradients import tiny_config
from tests.support.image_shards import write_images
from tests.support.training_runs import command, write_config
from trainer import train


def test_settings_without_effect_are_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_images(tmp_path / "images", images_per_caption=1)
    write_config(tmp_path, images_per_caption=1)
    assert command(tmp_path, "accumulation=2") == 0
    assert "crops.num_global is 1, and images_per_caption is 1" in caplog.text
    assert "Batch norms see one micro-batch at a time" in caplog.text


APART = {"objective": {"contrastive_head": {"statistics": "apart"}}}


@pytest.mark.parametrize(
    ("changes", "warned"),
    [
        ({"objective": {"positives": "image"}}, "and objective.positives is image"),
        ({"objective": {"positives": "image"}, "crops": {"num_global": 2}}, ""),
        (APART, ""),
        ({**APART, "crops": {"num_local": 0}}, "=apart has no effect: crops.num_local is 0."),
        (
            {"objective": {"contrastive_head": {"statistics": "apart", "norm": "ln"}}},
            "=apart has no effect: norm is ln.",
        ),
        (
            {
                "objective": {"kind": "supervised"},
                "crops": {"num_local": 0},
                "images_per_caption": 1,
                "accumulation": 2,
            },
            "",
        ),
    ],
)
def test_warnings_are_about_what_the_objective_does(
    changes: dict[str, Any], warned: str, caplog: pytest.LogCaptureFixture
) -> None:
    train._warn(tiny_config("unused", **changes), torch.device("cpu"))
    assert warned in caplog.text
    assert bool(warned) == bool(caplog.text)


@pytest.mark.parametrize("slow", [True, False])
def test_a_cpu_that_is_slow_in_bfloat16_is_warned_about(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, slow: bool
) -> None:
    monkeypatch.setattr(train, "bfloat16_is_slow", lambda: slow)
    train._warn(tiny_config("unused", precision="fp32"), torch.device("cpu"))
    train._warn(tiny_config("unused", precision="bf16"), torch.device("cuda"))
    assert not caplog.text
    train._warn(tiny_config("unused", precision="bf16"), torch.device("cpu"))
    assert ("Set precision=fp32" in caplog.text) == slow
