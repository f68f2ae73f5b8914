"""What a training says about itself: one JSON object per logged step in `metrics.jsonl`."""

import json
import os
from collections.abc import Mapping

from transforms.core import storage


class MetricsLog:
    """Appends to `metrics.jsonl`; a continued training leaves no step out and none twice.

    Args:
        url: Of the file. Local files are appended to at once; remote ones are written by `flush`.
        first_step: Where the training starts or continues; what an interrupted one wrote from
            there on is dropped.
    """

    def __init__(self, url: str, first_step: int) -> None:
        self.url = url
        self._lines = [line for line in _read(url) if json.loads(line)["step"] < first_step]
        self._local = storage.is_local(url)
        storage.replace_bytes(self._content(), url)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add the line of a step."""
        line = json.dumps({"step": step, **{k: float(f"{v:.6g}") for k, v in values.items()}})
        if self._local:
            with open(self.url, "a", encoding="utf-8") as file:
                file.write(line + "\n")
        else:
            self._lines.append(line)

    def flush(self) -> None:
        """Make the lines so far durable."""
        if self._local:
            descriptor = os.open(self.url, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
        else:
            storage.replace_bytes(self._content(), self.url)

    def _content(self) -> bytes:
        return "".join(line + "\n" for line in self._lines).encode("utf-8")


def _read(url: str) -> list[str]:
    """The whole lines of the file; a last one that was cut off is left out."""
    try:
        content = storage.read_bytes(url).decode("utf-8", errors="replace")
    except storage.MissingFileError:
        return []
    return [line for line in content.split("\n")[:-1] if line]
