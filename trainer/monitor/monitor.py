"""Monitor of a training: progress bar, `metrics.jsonl`, TensorBoard and Weights & Biases.

The metrics are listed in `trainer.monitor.metrics_log`.
"""

import contextlib
import importlib.util
from collections.abc import Mapping
from typing import Any, Protocol, Self

from trainer.monitor.config import MonitorConfig
from trainer.monitor.metrics_log import MetricsLog
from trainer.monitor.trackers import TensorBoard, WeightsAndBiases
from transforms.core import storage
from transforms.core.errors import StorageError
from transforms.core.progress import bar

SHOWN = {
    "loss": "{:.3f}",
    "global": "{:.3f}",
    "local": "{:.3f}",
    "ibot": "{:.3f}",
    "learning_rate": "{:.1e}",
    "images_per_s_per_device": "{:.0f}",
    "mfu": "{:.0%}",
    "waiting": "{:.0%}",
    "memory_gib": "{:.1f}",
    "knn": "{:.1f}",
}
"""Metrics next to the progress bar, in this order; the bar itself shows images/s and the time
left."""
SHORT_NAMES = {
    "learning_rate": "lr",
    "images_per_s_per_device": "img/s/device",
    "waiting": "wait",
    "memory_gib": "GiB",
}
"""Names of some metrics next to the progress bar."""


class MetricsWriter(Protocol):
    """Receives the metrics of each logged step."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Receive the metrics of one step."""

    def flush(self) -> None:
        """Make everything so far durable."""

    def close(self) -> None:
        """Finish: no more metrics follow."""


class Monitor:
    """Progress bar and metrics writers; exists on rank 0 only. Use it as a context manager.

    Args:
        config: Which metrics writers to open.
        folder: Output folder of the training.
        resolved: Resolved config of the training, for Weights & Biases.
        total: Number of images of the whole training.
        done: Number of images before this start.
        step: Number of finished steps before this start.
    """

    def __init__(
        self,
        config: MonitorConfig,
        folder: str,
        resolved: Mapping[str, Any],
        *,
        total: int,
        done: int,
        step: int,
    ) -> None:
        self._writers: list[MetricsWriter] = [
            MetricsLog(storage.join(folder, "metrics.jsonl"), step),
        ]
        installed = importlib.util.find_spec("tensorboard") is not None
        if config.tensorboard and installed and storage.is_local(folder):
            self._writers.append(TensorBoard(storage.join(folder, "tensorboard"), step))
        if config.wandb_project is not None:
            self._writers.append(WeightsAndBiases(config.wandb_project, folder, resolved))
        self._bar = bar(total, "images", "training", initial=done)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()
        for writer in self._writers:
            # The error of the training matters more than a log that cannot be finished.
            with contextlib.suppress(*([StorageError] if exception[0] else [])):
                writer.close()

    def advance(self, images: int) -> None:
        """Move the progress bar by a number of images."""
        self._bar.update(images)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Show the metrics of a step and pass them to all writers."""
        self._bar.set_postfix(_shown(values), refresh=False)
        for writer in self._writers:
            writer.write(step, values)

    def flush(self) -> None:
        """Make everything that was written durable."""
        for writer in self._writers:
            writer.flush()


def _shown(values: Mapping[str, float]) -> dict[str, str]:
    """Return the text next to the progress bar: name -> value."""
    return {
        SHORT_NAMES.get(name, name): form.format(values[name])
        for name, form in SHOWN.items()
        if name in values
    }
