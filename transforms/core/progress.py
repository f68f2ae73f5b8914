"""Progress bars of long steps: done, total, rate and time left.

On a terminal a bar is redrawn in place; in a log it prints a line every `LOG_INTERVAL_S` seconds.
"""

import logging
import sys
from typing import Any

from tqdm import tqdm

from transforms.core.references import redacted

LOG_INTERVAL_S = 15.0


class LogHandler(logging.Handler):
    """Print log lines on standard error, above any bar."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one line."""
        tqdm.write(redacted(self.format(record)), file=sys.stderr)


def bar(
    total: int, unit: str, description: str, initial: int = 0, smoothing: float = 0.1
) -> "tqdm[Any]":
    """Return a progress bar on standard error.

    Args:
        total: Number of units of the whole step.
        unit: Name of the units in the plural, for instance "images".
        description: Name of the step.
        initial: Units that were done before this process started; the rate does not count them.
        smoothing: Weight of the newest update in the rate; 0 means the mean since the start, for
            progress that moves in jumps.
    """
    interactive = sys.stderr.isatty()
    return tqdm(
        total=total,
        initial=initial,
        unit=f" {unit}",
        desc=f"{description:<12}",
        dynamic_ncols=True,
        smoothing=smoothing,
        mininterval=0.2 if interactive else LOG_INTERVAL_S,
        # Otherwise a bar that has jumped is not drawn again until it has moved as far once more.
        miniters=0,
    )
