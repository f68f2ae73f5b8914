"""What a training says about itself: a bar, `metrics.jsonl`, and whoever else wants to hear.

The numbers of a line, all of the step that it names or up to it:

    step                                      counted from 0
    loss, global, local, ibot, image, text    the loss and the terms that the objective has
    feature_std, target_entropy, prototypes_used
                                              signs of collapse, see `trainer.objectives.collapse`
    grad_norm                                 before it is clipped
    replaced                                  samples so far that could not be read, of all ranks
    learning_rate
    images_per_s, images_per_s_per_device, mfu, waiting, memory_gib
                                              see `trainer.training.throughput`
    knn                                       on real pictures, in percent, in some lines
"""

import contextlib
import errno
import importlib.util
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, Self

from pydantic import PositiveInt

from transforms.core import storage
from transforms.core.config import Config, no_fingerprint
from transforms.core.errors import ConfigError, MissingFileError, StorageError
from transforms.core.progress import bar


class MonitorConfig(Config):
    """What is watched beside the losses, and who is told."""

    knn_every: PositiveInt | None = no_fingerprint(None)
    """Steps between two looks at kNN on real pictures; null leaves them out."""
    knn_dataset: str = no_fingerprint("drawings")
    """Data set of the looks at kNN: `drawings`, `fashion-mnist` or `folder:PATH`."""
    knn_pictures: PositiveInt = no_fingerprint(2000)
    """Pictures of each split that kNN uses at most."""
    tensorboard: bool = no_fingerprint(True)
    """Write `<run>/train/tensorboard` where the package is installed and the run is on disk."""
    wandb_project: str | None = no_fingerprint(None)
    """Project of Weights & Biases to report to; null reports nothing there."""


class Listener(Protocol):
    """Is told the numbers of a step."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Take the numbers of a step."""

    def flush(self) -> None:
        """Make what was taken durable."""

    def close(self) -> None:
        """No more numbers come."""


class MetricsLog:
    """Appends to `metrics.jsonl`; a continued training leaves no step out and none twice.

    Args:
        url: Of the file. Local files are appended to at once; remote ones are written by `flush`.
        first_step: Where the training starts or continues; what an interrupted one wrote from
            there on is dropped, and so is what a power cut damaged.
    """

    def __init__(self, url: str, first_step: int) -> None:
        self.url = url
        self._lines = [line for line in _read(url) if 0 <= _step(line) < first_step]
        self._local = storage.is_local(url)
        storage.replace_bytes(self._content(), url)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add the line of a step."""
        line = json.dumps({"step": step, **{k: float(f"{v:.6g}") for k, v in values.items()}})
        if self._local:
            with _sentences(self.url), open(self.url, "a", encoding="utf-8") as file:
                file.write(line + "\n")
        else:
            self._lines.append(line)

    def flush(self) -> None:
        """Make the lines so far durable."""
        if self._local:
            with _sentences(self.url), open(self.url, "rb") as file:
                os.fsync(file.fileno())
        else:
            storage.replace_bytes(self._content(), self.url)

    def close(self) -> None:
        """Make the lines durable."""
        self.flush()

    def _content(self) -> bytes:
        return "".join(line + "\n" for line in self._lines).encode("utf-8")


class TensorBoard:
    """Event files, continued as TensorBoard does it: what a crash repeats is purged."""

    def __init__(self, folder: str, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._folder = folder
        self._writer: Any = SummaryWriter(folder, purge_step=first_step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point to the curve of each number."""
        with _sentences(self._folder):
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """Write what is buffered."""
        with _sentences(self._folder):
            self._writer.flush()

    def close(self) -> None:
        """Finish the file."""
        with _sentences(self._folder):
            self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases, named after the training's folder, resumed with it."""

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
        """Report the numbers of a step."""
        self._run.log(dict(values), step=step)

    def flush(self) -> None:
        """Nothing to do: it sends by itself."""

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


class Monitor:
    """The bar and the listeners of the one rank that speaks; use as a context manager.

    Args:
        config: Whom to tell.
        folder: Of the training.
        resolved: The training's whole config, for those who keep it.
        total: Images of the whole training.
        done: Images before this start.
        step: Finished steps at this start.
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
        self._listeners: list[Listener] = [
            MetricsLog(storage.join(folder, "metrics.jsonl"), step),
        ]
        installed = importlib.util.find_spec("tensorboard") is not None
        if config.tensorboard and installed and storage.is_local(folder):
            self._listeners.append(TensorBoard(storage.join(folder, "tensorboard"), step))
        if config.wandb_project is not None:
            self._listeners.append(WeightsAndBiases(config.wandb_project, folder, resolved))
        self._bar = bar(total, "images", "training", initial=done)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()
        for listener in self._listeners:
            # What went wrong in the training matters more than a log that cannot be finished.
            with contextlib.suppress(*([StorageError] if exception[0] else [])):
                listener.close()

    def advance(self, images: int) -> None:
        """Move the bar."""
        self._bar.update(images)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Tell everyone the numbers of a step."""
        self._bar.set_postfix(_shown(values), refresh=False)
        for listener in self._listeners:
            listener.write(step, values)

    def flush(self) -> None:
        """Make what was told durable."""
        for listener in self._listeners:
            listener.flush()


_SHOWN = {
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
"""What stands beside the bar, in this order; the bar itself has images/s and the time left."""
_SHORT = {
    "learning_rate": "lr",
    "images_per_s_per_device": "img/s/device",
    "waiting": "wait",
    "memory_gib": "GiB",
}


def _shown(values: Mapping[str, float]) -> dict[str, str]:
    return {
        _SHORT.get(name, name): form.format(values[name])
        for name, form in _SHOWN.items()
        if name in values
    }


@contextlib.contextmanager
def _sentences(path: str) -> Iterator[None]:
    """Turn what a disk refuses into a `StorageError`."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise StorageError(error.errno, f"cannot write {path}: the disk is full") from error
        raise StorageError(error.errno, f"cannot write {path}: {error.strerror}") from error


def _read(url: str) -> list[str]:
    """The lines of the file; a last one that was cut off is left out."""
    try:
        content = storage.read_bytes(url).decode("utf-8", errors="replace")
    except MissingFileError:
        return []
    return content.split("\n")[:-1]


def _step(line: str) -> int:
    """The step of a line, -1 if it is damaged."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return -1
