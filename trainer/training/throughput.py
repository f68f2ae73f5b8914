"""Throughput of a training between two lines of its metrics log."""

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
class Throughput:
    """Speed, waiting and memory since the last line; kNN and checkpoints do not count.

    Rates are over all ranks. Waiting and memory are the highest of any rank, because the others
    wait for that rank where ranks communicate, and do not notice it as waiting for data.
    """

    images_per_s: float
    images_per_s_per_device: float
    waiting: float
    """Share of the time in which a rank waited for data, 0 to 1; the highest of all ranks."""
    memory_gib: float
    """Peak so far of the memory of a rank's device, or of its process on a CPU, in GiB; the highest
    of all ranks."""
    utilisation: float | None
    """Model FLOP utilisation, 0 to 1; None if the peak of the device is not known."""

    def values(self) -> dict[str, float]:
        """Return the metrics by their names in the log."""
        metrics = {
            "images_per_s": self.images_per_s,
            "images_per_s_per_device": self.images_per_s_per_device,
            "waiting": self.waiting,
            "memory_gib": self.memory_gib,
        }
        return metrics if self.utilisation is None else {**metrics, "mfu": self.utilisation}


class ThroughputMeter:
    """Measures the throughput of a training; each rank has one.

    Args:
        config: The training.
        device: Device of this rank.
        step: Number of finished steps at the start.
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
        """Count the time of the body as waiting for data."""
        started = time.monotonic()
        yield
        self._waited += time.monotonic() - started

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count the time of the body, which is not training (kNN, checkpoints)."""
        started = time.monotonic()
        yield
        self._since += time.monotonic() - started

    def measure(self, step: int) -> Throughput:
        """Return the throughput since the last call; all ranks must call this together.

        Args:
            step: Number of steps that are finished now.
        """
        now = time.monotonic()
        seconds = max(now - self._since, 1e-9)
        rate = (step - self._step) * self._images / seconds
        per_device = rate / distributed.world_size()
        own = torch.tensor([min(self._waited / seconds, 1.0), self._memory()], dtype=torch.float64)
        waiting, memory = distributed.all_reduce(own, torch.distributed.ReduceOp.MAX).tolist()
        throughput = Throughput(
            images_per_s=rate,
            images_per_s_per_device=per_device,
            waiting=waiting,
            memory_gib=memory / (1 << 30),
            utilisation=per_device * self._flops / self._peak if self._peak else None,
        )
        self._step, self._since, self._waited = step, now, 0.0
        return throughput

    def _memory(self) -> int:
        """Return the peak memory of this rank in bytes."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
