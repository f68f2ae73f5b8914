"""Experiment trackers that receive the metrics of a training: TensorBoard, Weights & Biases."""

import importlib.util
import os
from collections.abc import Mapping
from typing import Any

from transforms.core import storage
from transforms.core.errors import ConfigError


class TensorBoard:
    """TensorBoard event files; on continuing, points of steps that are repeated are purged.

    Args:
        folder: Local folder of the event files.
        first_step: Step at which the training starts or continues.
    """

    def __init__(self, folder: str, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._folder = folder
        self._writer: Any = SummaryWriter(folder, purge_step=first_step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point to the curve of each metric."""
        with storage.accessing("write", self._folder):
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """Write buffered points."""
        with storage.accessing("write", self._folder):
            self._writer.flush()

    def close(self) -> None:
        """Finish the file."""
        with storage.accessing("write", self._folder):
            self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases, named after the folder of the training and resumed with it.

    Args:
        project: Name of the project.
        folder: Output folder of the training.
        config: Resolved config of the training, to be stored with the run.

    Raises:
        ConfigError: The package wandb is not installed.
    """

    def __init__(self, project: str, folder: str, config: Mapping[str, Any]) -> None:
        if importlib.util.find_spec("wandb") is None:
            raise ConfigError(
                f"key 'monitor.wandb_project' has value {project!r}, but the package wandb is not "
                "installed: expected null, or `pip install wandb`"
            )
        import wandb

        name = folder.partition("://")[2] or os.path.abspath(folder)
        name = name.strip("/").replace("/", "-")
        self._run: Any = wandb.init(
            project=project, id=name[-64:], name=name, resume="allow", config=dict(config)
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Report the metrics of a step."""
        self._run.log(dict(values), step=step)

    def flush(self) -> None:
        """Do nothing: wandb sends metrics by itself."""

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()
