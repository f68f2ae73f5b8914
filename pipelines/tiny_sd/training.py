"""Shared parts of tiny-sd's training loops: processes, checkpoints, learning rates, progress.

Training runs in one single-threaded process per core, and gradients are averaged after every step.
On these small networks, this is faster than one process with many threads, which wait for each
other in every operation, and much faster on a machine that is busy with other work.
"""

import logging
import math
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch import nn
from torch.multiprocessing.spawn import start_processes

from transforms.core.cpu import bfloat16_is_slow

SAVE_EVERY_S = 120.0
"""Seconds between checkpoints."""

LOG_EVERY_S = 15.0
"""Seconds between log lines."""


def half_precision() -> torch.autocast:
    """Return a context for products in bfloat16, if the processor supports it."""
    return torch.autocast("cpu", torch.bfloat16, enabled=not bfloat16_is_slow())


def run_processes(task: Callable[..., None], num_processes: int, *arguments: Any) -> None:
    """Run `task(*arguments)` in `num_processes` processes that average gradients; wait for all.

    Args:
        task: Function of a module.
        num_processes: Number of processes, each with one thread.
        arguments: Arguments of the task; they must be picklable.
    """
    with tempfile.TemporaryDirectory() as folder:
        meeting = f"file://{folder}/meeting"
        start_processes(
            _enter,
            (meeting, num_processes, task, arguments),
            num_processes,
            start_method="fork",  # Keeps the command line, which identifies the processes.
        )


def _enter(
    rank: int, meeting: str, world: int, task: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    if rank != 0:
        logging.getLogger().setLevel(logging.WARNING)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
    task(*arguments)
    dist.destroy_process_group()


def rank_and_world() -> tuple[int, int]:
    """Return the number of this process and of all; (0, 1) outside `run_processes`."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def wait_for_all() -> None:
    """Wait until every process has reached this point."""
    if dist.is_initialized():
        dist.barrier()


@torch.no_grad()
def average_gradients(module: nn.Module) -> None:
    """Replace each gradient by its mean over the processes."""
    _, world = rank_and_world()
    if world == 1:
        return
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    pieces = (flat / world).split([g.numel() for g in gradients])
    torch._foreach_copy_(gradients, [p.view_as(g) for p, g in zip(pieces, gradients, strict=True)])


def cosine_rate(step: int, total: int, warmup: int, peak: float) -> float:
    """Return the rate: linear warm-up over `warmup` steps, then a cosine to zero at `total`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def trapezoid_rate(step: int, total: int, warmup: int, decay: int, peak: float) -> float:
    """Return the rate: linear warm-up, constant, linear to zero over the last `decay` steps."""
    return peak * min(1.0, (step + 1) / warmup, (total - step) / decay)


def save_checkpoint(path: Path, parts: dict[str, Any], step: int) -> None:
    """Write the state of `parts` (objects with a `state_dict`) and the step, atomically.

    Only the first process writes; the state of the others is the same.
    """
    if rank_and_world()[0] != 0:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".tmp")
    torch.save({"step": step} | {k: v.state_dict() for k, v in parts.items()}, scratch)
    os.replace(scratch, path)


def load_checkpoint(path: Path, parts: dict[str, Any]) -> int:
    """Load `parts` from the checkpoint at `path`; return its step, or 0 without a checkpoint."""
    if not path.exists():
        return 0
    saved = torch.load(path, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(saved[name])
    return int(saved["step"])


class Clock:
    """Progress of a training loop: rate, time left, and mean loss since the last log line."""

    def __init__(self, num_steps: int, batch_size: int, start: int) -> None:
        """Start the clock at step `start` of `num_steps`."""
        self._num_steps, self._batch_size = num_steps, batch_size
        self._first, self.step = start, start
        self._begin = self._logged = self._saved = time.monotonic()
        self._losses: list[float] = []
        self.mean = math.nan

    def tick(self, loss: float) -> bool:
        """Count a step; return True when a log line is due, after updating `mean`."""
        self.step += 1
        self._losses.append(loss)
        now = time.monotonic()
        if now - self._logged < LOG_EVERY_S and self.step != self._num_steps:
            return False
        self._logged = now
        self.mean = sum(self._losses) / len(self._losses)
        self._losses.clear()
        return True

    def should_save(self) -> bool:
        """Return True when a checkpoint is due, and start waiting for the next one."""
        now = time.monotonic()
        if now - self._saved < SAVE_EVERY_S:
            return False
        self._saved = now
        return True

    def __str__(self) -> str:
        """Return the step, the rate and the minutes left as text."""
        done = self.step - self._first
        rate = done / (time.monotonic() - self._begin)
        left = (self._num_steps - self.step) / rate / 60
        return (
            f"{self.step}/{self._num_steps}, {rate * self._batch_size:.0f}/s, {left:.1f} min left"
        )
