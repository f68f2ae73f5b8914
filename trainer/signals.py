"""Stop signals, after which a training saves a checkpoint and ends.

A cluster may signal every process on a machine, and the launcher then signals its ranks again. So
only a second Ctrl-C interrupts the training at once. Loader processes never receive stop signals:
the training needs them until it has saved a checkpoint, and ends them itself.
"""

import contextlib
import signal
from collections.abc import Iterator
from multiprocessing import resource_tracker

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Ctrl-C; the signal before a cluster takes a machine away; the signal of Slurm's `--signal`."""


@contextlib.contextmanager
def stop_signals() -> Iterator[list[str]]:
    """Collect the names of received stop signals in the list that is yielded.

    A second Ctrl-C has its usual effect. If a signal was received, or after an error, the process
    is about to end, so stop signals are ignored from then on: see `ignore_stops`.
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


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C end this process at once while the body waits inside torch for other ranks.

    Python's own handler would run after the wait only. (SIGTERM and SIGUSR1 end the process anyway,
    unless `stop_signals` collects them.)
    """
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def ignore_stops() -> None:
    """Ignore all stop signals except Ctrl-C, in a process that is about to end.

    The launcher ends all ranks once one has failed; their own exit codes and last lines are needed.
    """
    for number in STOP_SIGNALS:
        if number != signal.SIGINT:
            signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def block_stops() -> Iterator[None]:
    """Start processes in the body that never receive stop signals.

    A new process has no signal handlers until it has imported its modules, but it inherits the mask
    of blocked signals. Signals are blocked in the calling thread only, so this process still
    receives them if it has other threads.
    """
    resource_tracker.ensure_running()  # Starting it later would unblock the signals.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
