"""Loss and gradients of one step in float64, alone or as one of several ranks."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.support.image_shards import TINY_TRAINING
from tests.support.ranks import run_on_ranks
from trainer import distributed
from trainer.config import TrainConfig
from trainer.data.batch import Batch
from trainer.execution import prepare, unsharded
from trainer.models.vit import EncoderNetwork
from trainer.objectives.registry import build_networks, build_objective
from trainer.training.session import open_samples, rank_batches

Result = tuple[dict[str, Tensor], dict[str, Tensor]]
"""Loss terms and gradients by name."""


def tiny_config(run: Path | str, **changes: Any) -> TrainConfig:
    """Return the config of `TINY_TRAINING`, with changes.

    Args:
        run: Folder of the run.
        changes: New values of top-level keys; a dict changes some keys of a section.
    """
    values: dict[str, Any] = {**TINY_TRAINING, "run": str(run)}
    for key, change in changes.items():
        if isinstance(change, dict):
            before = values.get(key, {})
            is_same = change.get("kind", "contrastive") == before.get("kind", "contrastive")
            change = {**before, **change} if is_same else change
        values[key] = change
    return TrainConfig.model_validate(values)


def step_batch(config: TrainConfig, step: int) -> Batch:
    """Return this rank's batch of a step."""
    return next(rank_batches(config, open_samples(config), range(step, step + 1)))


def exact_networks(config: TrainConfig) -> tuple[EncoderNetwork, EncoderNetwork | None]:
    """Return student and teacher in float64; the teacher differs from the student."""
    student, teacher = build_networks(config)
    if teacher is not None:
        with torch.no_grad():
            for number, value in enumerate(teacher.double().state_dict().values()):
                noise = torch.Generator().manual_seed(number)
                value += 0.02 * torch.randn(value.shape, generator=noise, dtype=value.dtype).abs()
    return student.double(), teacher


def step_gradients(config: TrainConfig, step: int) -> Result:
    """Return loss terms (and a collapse metric) and gradients, averaged over the ranks."""
    torch.set_num_threads(1)
    student, teacher = exact_networks(config)
    spread = prepare(student, teacher, config.execution, torch.device("cpu"), "fp32")
    objective = build_objective(config, spread, teacher)
    terms = objective.backward(step_batch(config, step), step)
    if teacher is not None:  # Without one, of the last micro-batch.
        terms["feature_std"] = objective.collapse_metrics["feature_std"]
    for term in terms.values():
        distributed.all_reduce(term).div_(distributed.world_size())
    return terms, unsharded(_gradients(student))


def _gradients(student: EncoderNetwork) -> dict[str, Tensor]:
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in student.named_parameters()
    }


def gradients_of_ranks(
    steps: list[tuple[TrainConfig, int]], ranks: int, folder: Path
) -> list[list[Result]]:
    """Return `step_gradients` of several steps on each rank; arguments as in `run_on_ranks`."""
    values = [(config.model_dump(), step) for config, step in steps]
    return run_on_ranks(_all_step_gradients, ranks, folder, values)


def _all_step_gradients(steps: list[tuple[dict[str, Any], int]]) -> list[Result]:
    return [step_gradients(TrainConfig.model_validate(values), step) for values, step in steps]


def anchor_losses(config: TrainConfig, step: int) -> Result:
    """Return the contrastive loss of each anchor of this rank, and gradients over all ranks.

    Returns:
        The positions of the rank's captions, int64 [N], with the losses of their "global" and
        "local" crops, float64 [N, crops]; gradients by name.
    """
    student, teacher = exact_networks(config)
    spread = prepare(student, teacher, config.execution, torch.device("cpu"), "fp32")
    objective: Any = build_objective(config, spread, teacher)
    mean_loss = objective._contrast
    found: dict[str, list[Tensor]] = {"global": [], "local": []}

    def record(
        anchors: Tensor, ids: Tensor, *keys: Tensor, exclude: Tensor | None = None
    ) -> Tensor:
        for row in range(len(anchors)):
            one = slice(row, row + 1)
            own_key = None if exclude is None else exclude[one]
            loss: Tensor = mean_loss(anchors[one], ids[one], *keys, exclude=own_key)
            found["local" if exclude is None else "global"].append(loss.detach())
        whole: Tensor = mean_loss(anchors, ids, *keys, exclude=exclude)
        return whole

    objective._contrast = record
    batch = step_batch(config, step)
    objective.backward(batch, step)
    losses = {
        name: torch.stack(rows).view(len(batch.positions), -1) for name, rows in found.items()
    }
    return {"positions": batch.positions, **losses}, unsharded(_gradients(student))


def anchor_losses_of_ranks(
    configs: list[TrainConfig], step: int, ranks: int, folder: Path
) -> list[Result]:
    """Return `anchor_losses` of several configs, with the anchors of all ranks by position."""
    values = [config.model_dump() for config in configs]
    per_rank = run_on_ranks(_all_anchor_losses, ranks, folder, values, step)
    return [
        (by_position([losses for losses, _ in of_config]), of_config[0][1])
        for of_config in zip(*per_rank, strict=True)
    ]


def _all_anchor_losses(configs: list[dict[str, Any]], step: int) -> list[Result]:
    return [anchor_losses(TrainConfig.model_validate(values), step) for values in configs]


def by_position(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the rows of several ranks, sorted by their positions."""
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    order = whole["positions"].argsort()
    return {name: rows[order] for name, rows in whole.items()}


def assert_same(first: Result, second: Result) -> None:
    """Check that two results agree to the precision of float64."""
    for ours, theirs in zip(first, second, strict=True):
        assert ours.keys() == theirs.keys() != set()
        for name, value in ours.items():
            # timm interpolates position embeddings for local crops in float32.
            atol = 1e-6 if name == "encoder.pos_embed" else 1e-10
            assert torch.allclose(value, theirs[name], atol=atol, rtol=1e-8), name
