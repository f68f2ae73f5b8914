"""How fast a training goes, measured between two lines of its log."""

import contextlib
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from trainer import distributed
from trainer.config import TrainConfig, batch_images
from trainer.training.flops import image_flops, peak_flops


@dataclass(frozen=True)
class Pace:
    """What was measured since the last line, without kNN and checkpoints; rates: over all ranks.

    Waiting and memory are those of the rank that is worst off: the others wait with it, but where
    they communicate, and so never see it.
    """

    images_per_s: float
    images_per_s_per_device: float
    waiting: float
    """Share of the time in which a rank waited for data, 0 to 1; the highest of all."""
    memory_gib: float
    """Peak so far of a rank's device, or of its process on a CPU; the highest of all."""
    utilisation: float | None
    """Model FLOP utilisation, 0 to 1; None where the device's peak is not known."""

    def values(self) -> dict[str, float]:
        """Its numbers by name, for the log."""
        numbers = {
            "images_per_s": self.images_per_s,
            "images_per_s_per_device": self.images_per_s_per_device,
            "waiting": self.waiting,
            "memory_gib": self.memory_gib,
        }
        return numbers if self.utilisation is None else {**numbers, "mfu": self.utilisation}


class Clock:
    """Measures the pace of a training; one per rank.

    Args:
        config: Of the training.
        device: Of this rank.
        step: Finished steps at the start.
    """

    def __init__(self, config: TrainConfig, device: torch.device, step: int) -> None:
        self._device = device
        self._images = batch_images(config)
        self._flops = image_flops(config)
        self._peak = None
        if device.type == "cuda":
            self._peak = peak_flops(torch.cuda.get_device_name(device))
        self._waited = 0.0
        self._step = step
        self._since = time.monotonic()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the body's time as waiting for data."""
        started = time.monotonic()
        yield
        self._waited += time.monotonic() - started

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the body's time out: what is not training (kNN, checkpoints)."""
        started = time.monotonic()
        yield
        self._since += time.monotonic() - started

    def lap(self, step: int) -> Pace:
        """The pace since the last call; `step` steps are finished now. All ranks ask together."""
        now = time.monotonic()
        seconds = max(now - self._since, 1e-9)
        rate = (step - self._step) * self._images / seconds
        per_device = rate / distributed.world_size()
        own = torch.tensor([min(self._waited / seconds, 1.0), self._memory()], dtype=torch.float64)
        waiting, memory = distributed.all_reduce(own, torch.distributed.ReduceOp.MAX).tolist()
        pace = Pace(
            images_per_s=rate,
            images_per_s_per_device=per_device,
            waiting=waiting,
            memory_gib=memory / (1 << 30),
            utilisation=per_device * self._flops / self._peak if self._peak else None,
        )
        self._step, self._since, self._waited = step, now, 0.0
        return pace

    def _memory(self) -> int:
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
