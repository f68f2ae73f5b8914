"""Schedules of a training as functions of the step. Source: paper appendix.

`step` is the number of finished optimiser steps: the first update uses 0, the last `total` - 1.
"""

import math


def ema_momentum(step: int, total: int, *, start: float = 0.994, end: float = 1.0) -> float:
    """Return the share of the teacher that an update keeps: cosine from `start` to `end`."""
    return _cosine(start, end, step / total)


def weight_decay(step: int, total: int, *, start: float = 0.04, end: float = 0.2) -> float:
    """Return AdamW's weight decay: cosine from `start` to `end`."""
    return _cosine(start, end, step / total)


def teacher_temperature(
    step: int, *, start: float = 0.04, end: float = 0.07, num_steps: int = 4000
) -> float:
    """Return the temperature of iBOT's targets: linear for `num_steps` steps, then `end`."""
    share = min(step / num_steps, 1.0) if num_steps else 1.0
    return start + (end - start) * share


def learning_rate(step: int, total: int, warmup: int, peak: float) -> float:
    """Return the learning rate: linear to `peak` over `warmup` steps, cosine to 0 at `total`."""
    if step < warmup:
        return peak * step / warmup
    if total == warmup:
        return peak
    return _cosine(peak, 0.0, (step - warmup) / (total - warmup))


def _cosine(start: float, end: float, share: float) -> float:
    share = min(max(share, 0.0), 1.0)
    return end + (start - end) * (1.0 + math.cos(math.pi * share)) / 2.0
