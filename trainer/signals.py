"""Signals that ask a training to save and leave."""

import contextlib
import signal
from collections.abc import Iterator

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Ctrl-C; what clusters send before they take a machine away; what Slurm's `--signal` sends."""


@contextlib.contextmanager
def stop_signals() -> Iterator[list[str]]:
    """Collect the names of stop signals; a second one acts as if nobody had listened."""
    received: list[str] = []
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def receive(number: int, _: object) -> None:
        received.append(signal.Signals(number).name)
        restore()

    for number in before:
        signal.signal(number, receive)
    try:
        yield received
    finally:
        restore()
