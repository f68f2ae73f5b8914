"""The progress bar of every long step: done, total, rate and time left.

On a terminal it is redrawn in place; in a log it prints a line every `LOG_INTERVAL_S` seconds.
"""

import sys
from typing import Any

from tqdm import tqdm

LOG_INTERVAL_S = 15.0


def bar(total: int, unit: str, description: str, initial: int = 0) -> "tqdm[Any]":
    """A bar on standard error.

    Args:
        total: How many units the step has in all.
        unit: What is counted, for instance "images".
        description: The step's name.
        initial: Units that were done before this process started; the rate leaves them out.
    """
    interactive = sys.stderr.isatty()
    return tqdm(
        total=total,
        initial=initial,
        unit=f" {unit}",
        desc=f"{description:<12}",
        dynamic_ncols=True,
        smoothing=0.1,
        mininterval=0.2 if interactive else LOG_INTERVAL_S,
        maxinterval=1.0 if interactive else LOG_INTERVAL_S,
    )
