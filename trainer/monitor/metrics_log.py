"""The file `metrics.jsonl`: one line of JSON per logged step, with these metrics.

step                                      of the update, counted from 0
loss, global, local, ibot, image, text    the loss and the terms that the objective has
feature_std, target_entropy, prototypes_used
collapse metrics, see `trainer.objectives.collapse`
grad_norm                                 norm of the gradient before clipping
replaced                                  samples so far that could not be decoded, over all ranks
learning_rate
images_per_s, images_per_s_per_device, mfu, waiting, memory_gib
see `trainer.training.throughput`
knn                                       accuracy of online kNN in percent, in some lines
"""

import json
import os
from collections.abc import Mapping

from transforms.core import storage
from transforms.core.errors import MissingFileError


class MetricsLog:
    """Writer of `metrics.jsonl`; over all restarts of a training each step is in it once.

    Args:
        url: URL or path of the file. A local file is appended to with every line; a remote one is
            written by `flush`.
        first_step: Step at which the training starts or continues. Lines of later steps, which an
            interrupted training left, are removed, and so are damaged lines (power failure).
    """

    def __init__(self, url: str, first_step: int) -> None:
        self.url = url
        self._lines = [line for line in _read_lines(url) if 0 <= _step_of(line) < first_step]
        self._local = storage.is_local(url)
        storage.replace_bytes(self._content(), url)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add the line of a step."""
        line = json.dumps({"step": step, **{k: float(f"{v:.6g}") for k, v in values.items()}})
        if self._local:
            with storage.accessing("write", self.url), open(self.url, "a", encoding="utf-8") as log:
                log.write(line + "\n")
        else:
            self._lines.append(line)

    def flush(self) -> None:
        """Make all lines so far durable."""
        if self._local:
            with storage.accessing("sync", self.url), open(self.url, "rb") as log:
                os.fsync(log.fileno())
        else:
            storage.replace_bytes(self._content(), self.url)

    def close(self) -> None:
        """Make all lines durable."""
        self.flush()

    def _content(self) -> bytes:
        return "".join(line + "\n" for line in self._lines).encode("utf-8")


def _read_lines(url: str) -> list[str]:
    """Return the lines of the file, without an incomplete last one."""
    try:
        content = storage.read_bytes(url).decode("utf-8", errors="replace")
    except MissingFileError:
        return []
    return content.split("\n")[:-1]


def _step_of(line: str) -> int:
    """Return the step of a line, -1 if the line is damaged."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return -1
