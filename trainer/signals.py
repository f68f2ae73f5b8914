"""Signals that ask a training to save and leave.

Whoever takes a machine away may signal every process on it, and the launcher then signals its ranks
once more. So only Ctrl-C insists when it comes twice; and processes that load data never hear of
it, since the training needs them until it has saved, and ends them itself.
"""

import contextlib
import signal
from collections.abc import Iterator
from multiprocessing import resource_tracker

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Ctrl-C; what clusters send before they take a machine away; what Slurm's `--signal` sends."""


@contextlib.contextmanager
def stop_signals() -> Iterator[list[str]]:
    """Collect the names of stop signals; a second Ctrl-C acts as if nobody had listened.

    Where one was collected, the process is about to leave, and the others stay ignored.
    """
    received: list[str] = []
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}

    def receive(number: int, _: object) -> None:
        received.append(signal.Signals(number).name)
        if number == signal.SIGINT:
            signal.signal(number, before[signal.SIGINT])

    for number in before:
        signal.signal(number, receive)
    try:
        yield received
    finally:
        for number, handler in before.items():
            leaving = received and number != signal.SIGINT
            signal.signal(number, signal.SIG_IGN if leaving else handler)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Hold stop signals back for a moment; processes started in it never get any.

    A new process is without handlers until it has imported what it needs, but whether signals are
    held back it inherits from the start.
    """
    resource_tracker.ensure_running()  # Starting it would let signals through again.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
