"""A training fits its data; bfloat16 gives the results of float32."""

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.gradients import step_batch, tiny_config
from tests.support.image_shards import TINY_TRAINING, UNCHANGED, write_images
from tests.support.training_runs import command, write_config
from trainer.objectives.registry import build_networks, build_objective


def logged(run: Path, name: str) -> list[float]:
    lines = (run / "train" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)[name] for line in lines]


def pattern(caption: int, image: int) -> bytes:
    """Return an image of nine coloured squares that a caption determines, with a little noise."""
    squares = np.random.default_rng(caption).integers(30, 226, size=(3, 3, 3))
    noise = np.random.default_rng(100 * caption + image).integers(-20, 21, size=(24, 24, 3))
    buffer = io.BytesIO()
    pixels = (squares.repeat(8, axis=0).repeat(8, axis=1) + noise).astype(np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.slow
def test_64_captions_are_learned_by_heart(tmp_path: Path) -> None:
    write_images(tmp_path / "images", (32, 32), paint=pattern)
    write_config(
        tmp_path,
        captions_per_batch=32,
        steps=150,
        model={**TINY_TRAINING["model"], "image_size": 24, "width": 48, "num_heads": 4},
        # Patterns differ in their squares, so the squares must keep their colours and places.
        crops={"num_local": 1, "local_size": 8, "global_scale": [1, 1], "ratio": [1, 1], "flip": 0},
        photometric=UNCHANGED,
        objective={**TINY_TRAINING["objective"], "contrastive_head": {"hidden": 64, "out": 32}},
        optim={"warmup": 20, "learning_rate": 2e-3, "ema_momentum": [0.9, 1.0]},
    )
    assert command(tmp_path, "log_every=10", "model.drop_path=0") == 0
    losses = logged(tmp_path, "global")
    chance = math.log(63)
    assert losses[0] > chance, "one positive among 63 images of other captions and its own"
    assert np.mean(losses[-5:]) < 0.6 * chance


def terms_and_gradient(tmp_path: Path, precision: str) -> tuple[dict[str, float], torch.Tensor]:
    config = tiny_config(tmp_path, precision=precision, model={"drop_path": 0.0})
    student, teacher = build_networks(config)
    objective = build_objective(config, student, teacher)
    terms = objective.backward(step_batch(config, 0), 0)
    gradients = [p.grad.flatten() for p in student.parameters() if p.grad is not None]
    return {name: float(term) for name, term in terms.items()}, torch.cat(gradients)


def test_bfloat16_is_float32_within_its_precision(tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    exact, exact_gradient = terms_and_gradient(tmp_path, "fp32")
    rounded, rounded_gradient = terms_and_gradient(tmp_path, "bf16")
    assert rounded != exact, "it has an effect"
    # A mantissa of eight bits is 0.4 %; logits are divided by temperatures of 0.04 to 0.1.
    assert rounded == pytest.approx(exact, rel=0.05)
    cosine = torch.nn.functional.cosine_similarity(exact_gradient, rounded_gradient, dim=0)
    assert cosine > 0.98
