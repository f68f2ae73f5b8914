"""A training learns what it is given, in bfloat16 as in float32."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.trainer.gradients import tiny_config
from tests.trainer.making import write_images
from tests.trainer.running import command, write_config
from trainer.objectives import build_networks, build_objective
from trainer.stream import batches
from trainer.train import open_samples


def logged(run: Path, name: str) -> list[float]:
    lines = (run / "train" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)[name] for line in lines]


@pytest.mark.slow
def test_64_captions_are_learned_by_heart(tmp_path: Path) -> None:
    write_images(tmp_path / "images", (32, 32))
    write_config(tmp_path, captions_per_batch=32, steps=300, log_every=10, optim={"warmup": 20})
    # Pictures of one colour are told apart by their colours, so these stay as they are.
    still = ["photometric.jitter=0", "photometric.grey=0", "model.width=24", "model.drop_path=0"]
    assert command(tmp_path, *still, "optim.learning_rate=0.003") == 0
    losses = logged(tmp_path, "global")
    assert losses[0] > 3.0, "at the start all 64 images look alike: about log(63)"
    assert np.mean(losses[-5:]) < 0.5 * losses[0]


def terms_and_gradient(tmp_path: Path, precision: str) -> tuple[dict[str, float], torch.Tensor]:
    config = tiny_config(tmp_path, precision=precision, model={"drop_path": 0.0})
    student, teacher = build_networks(config)
    objective = build_objective(config, student, teacher)
    stream = batches(
        open_samples(config),
        config.loader,
        first_step=0,
        last_step=1,
        captions_per_batch=config.captions_per_batch,
        rank=0,
        ranks=1,
    )
    terms = objective.backward(next(stream), 0)
    gradients = [p.grad.flatten() for p in student.parameters() if p.grad is not None]
    return {name: float(term) for name, term in terms.items()}, torch.cat(gradients)


def test_bfloat16_is_float32_within_its_precision(tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    exact, exact_gradient = terms_and_gradient(tmp_path, "fp32")
    rounded, rounded_gradient = terms_and_gradient(tmp_path, "bf16")
    assert rounded != exact, "it has an effect"
    # Eight bits of mantissa are 0.4 %; logits are divided by temperatures of 0.04 to 0.1.
    assert rounded == pytest.approx(exact, rel=0.05)
    cosine = torch.nn.functional.cosine_similarity(exact_gradient, rounded_gradient, dim=0)
    assert cosine > 0.98
