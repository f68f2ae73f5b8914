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

    Where one was collected, or with an error, the process is about to leave: see `ignore_stops`.
    """
    received: list[str] = []
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}

    def receive(number: int, _: object) -> None:
        received.append(signal.Signals(number).name)
        if number == signal.SIGINT:
            signal.signal(number, before[signal.SIGINT])

    for number in before:
        signal.signal(number, receive)
    leaving = True
    try:
        yield received
        leaving = bool(received)
    finally:
        if leaving:
            ignore_stops()
        for number, handler in before.items():
            if number == signal.SIGINT or not leaving:
                signal.signal(number, handler)


def ignore_stops() -> None:
    """Let none but Ctrl-C cut off a process that is on its way out.

    The launcher ends all ranks as soon as one has failed, and what they say of themselves counts.
    """
    for number in STOP_SIGNALS:
        if number != signal.SIGINT:
            signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Processes that this thread starts in it never get stop signals.

    A new process is without handlers until it has imported what it needs, but whether signals are
    held back it inherits from the start. This process still hears them where it has other threads:
    they are held back from the calling one alone.
    """
    resource_tracker.ensure_running()  # Starting it would let signals through again.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
