"""The progress bar of every long step: done, total, rate and time left.

On a terminal it is redrawn in place; in a log it prints a line every `LOG_INTERVAL_S` seconds.
"""

import logging
import sys
from typing import Any

from tqdm import tqdm

LOG_INTERVAL_S = 15.0


class LogHandler(logging.Handler):
    """Prints log lines on standard error, above any bar instead of into it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a line."""
        tqdm.write(self.format(record), file=sys.stderr)


def bar(
    total: int, unit: str, description: str, initial: int = 0, smoothing: float = 0.1
) -> "tqdm[Any]":
    """A bar on standard error.

    Args:
        total: How many units the step has in all.
        unit: What is counted, for instance "images".
        description: The step's name.
        initial: Units that were done before this process started; the rate leaves them out.
        smoothing: Weight of the newest update in the rate; 0 takes the mean since the start, for
            progress that is seen in jumps.
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
        # Else a bar that has jumped is not drawn again, its clock stands still, until it has moved
        # as far once more.
        miniters=0,
    )
