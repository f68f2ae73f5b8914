"""AdamW, its schedules, and the parameters that do not decay. Source: paper, table 12."""

from typing import Annotated

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat
from torch import nn

from trainer.losses import schedules
from transforms.core.config import Config, Probability

Decay = Annotated[float, Field(ge=0, lt=1)]
UNDECAYED_NAMES = frozenset({"pos_embed", "cls_token", "mask_token", "gain"})


class OptimConfig(Config):
    """AdamW and its schedules."""

    learning_rate: PositiveFloat = 2e-3
    """Peak learning rate, for any batch size (paper: 2e-3 for B, 1.5e-3 for L). May be changed on a
    run."""
    warmup: NonNegativeInt = 0
    """Steps of linear warm-up (paper: 80k of 500k in the final runs; the default fits any number of
    steps)."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """AdamW's decay rates of its two averages (paper: 0.9, 0.999)."""
    weight_decay: tuple[NonNegativeFloat, NonNegativeFloat] = (0.04, 0.2)
    """Weight decay at the start and the end of its cosine (paper: 0.04, 0.2). Biases, norms,
    tokens, positions and gains do not decay."""
    clip_norm: PositiveFloat | None = None
    """Largest norm of the whole gradient; null does not clip (authors' code; the paper states
    nothing). May be changed on a run."""
    ema_momentum: tuple[Probability, Probability] = (0.994, 1.0)
    """Momentum of the teacher at the start and the end of its cosine (paper: 0.994, 1)."""


def is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """Return whether a parameter decays: matrices and patch kernels do, tokens do not."""
    return parameter.ndim >= 2 and name.rpartition(".")[2] not in UNDECAYED_NAMES


def build_optimizer(module: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """Return fused AdamW over the trainable parameters in two groups: decayed and not."""
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            groups[is_decayed(name, parameter)].append(parameter)
    return torch.optim.AdamW(
        [
            {"params": groups[True], "decayed": True},
            {"params": groups[False], "decayed": False, "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        betas=config.betas,
        fused=True,
    )


def set_schedule(
    optimizer: torch.optim.Optimizer, config: OptimConfig, step: int, total: int
) -> float:
    """Set learning rate and weight decay for the update of a step; return the learning rate."""
    rate = schedules.learning_rate(step, total, config.warmup, config.learning_rate)
    start, end = config.weight_decay
    decay = schedules.weight_decay(step, total, start=start, end=end)
    for group in optimizer.param_groups:
        group["lr"] = rate
        group["weight_decay"] = decay if group["decayed"] else 0.0
    return rate
