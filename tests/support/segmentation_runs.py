"""Short trainings of a segmenter on the small set, in this process or in one that is killed."""

import os
import signal
from pathlib import Path
from typing import Any

import torch

from tests.support.masked_pictures import MODEL, small_encoder
from trainer import distributed
from trainer.evaluate.config import EvaluateConfig
from trainer.evaluate.datasets import load_dataset
from trainer.evaluate.features import Extraction, encoder_subject
from trainer.evaluate.protocols import config_class
from trainer.evaluate.protocols.base import Evaluation
from trainer.evaluate.protocols.segmentation import PROTOCOL
from trainer.evaluate.segmentation.network import BatchNorm
from trainer.evaluate.segmentation.training import CHECK_EVERY, SegmentationTraining
from transforms.core.scores import Score

QUICK = {
    "num_steps": 2 * CHECK_EVERY + 5,
    "batch_size": 4,
    "warmup_steps": 2,
    "crop_size": 32,
    "channels": 8,
    "learning_rate": 1e-3,
    "save_every_s": 0,
}


def score(data: Path, run: Path, settings: dict[str, Any]) -> Score:
    """Return the score of a small encoder on the set in `data`."""
    config: EvaluateConfig = config_class().model_validate(
        {"run": str(run), "device": "cpu", "segmentation": {**QUICK, **settings}}
    )
    extraction = Extraction("cpu", 4, 0)
    subject = encoder_subject("trained", small_encoder(), MODEL, extraction, "digest")
    (found,) = PROTOCOL.run(Evaluation(config, [load_dataset("ade20k", data)], [subject]))
    return found


def score_and_weights(data: str, run: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the value and interval of a score, and the trained weights."""
    found = score(Path(data), Path(run), settings)
    (file,) = (Path(run) / "segmentation").glob("*.pt")
    weights = torch.load(file, weights_only=True)["network"]
    return {"score": [found.value, *(found.interval or [])], "weights": weights}


def gradients_and_score(data: str, run: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the gradients of the first step, and the score."""
    gradients: dict[str, torch.Tensor] = {}
    average = SegmentationTraining._average_gradients

    def noting(self: SegmentationTraining) -> None:
        average(self)
        if self.step == 0:
            named = self.network.named_parameters()
            gradients.update({n: p.grad.clone() for n, p in named if p.grad is not None})

    setattr(SegmentationTraining, "_average_gradients", noting)  # noqa: B010
    try:
        found = score(Path(data), Path(run), settings)
    finally:
        setattr(SegmentationTraining, "_average_gradients", average)  # noqa: B010
    return {"gradients": gradients, "score": found.value}


def normalised(maps: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return this rank's share of normalised maps, their gradient, and the estimates."""
    norm = BatchNorm(3).double()
    own = maps.chunk(distributed.world_size())[distributed.rank()].clone().requires_grad_(True)
    found = norm(own)
    (found * torch.arange(found[0].numel()).view(found[0].shape)).square().sum().backward()
    return found.detach(), own.grad, norm.running_mean, norm.running_var  # type: ignore[return-value]


def shared_work(
    data: str, run: str, settings: dict[str, Any], maps: torch.Tensor
) -> dict[str, Any]:
    """Return what ranks compute together: a score, its first gradients, and normalised maps."""
    return {**gradients_and_score(data, run, settings), "normalised": normalised(maps)}


def killed_in_step(rank: int, data: str, run: str, settings: dict[str, Any], step: int) -> None:
    """Score, but die of SIGKILL when a step begins."""
    update = SegmentationTraining._update

    def deadly(self: SegmentationTraining, *batch: torch.Tensor) -> torch.Tensor:
        if self.step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return update(self, *batch)

    setattr(SegmentationTraining, "_update", deadly)  # noqa: B010
    score(Path(data), Path(run), settings)
