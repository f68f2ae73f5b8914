"""Ends a process whose engine hangs.

A call that hangs in a driver or a kernel cannot be cancelled from Python, and the thread that made
it holds the device for good. So nothing in its process can go on: handing the shard back would
only let the same process fail the next one. The process ends instead, as if it had been killed,
with a sentence and exit code 1. Where it is a worker of a cluster, the runner starts another and
gives it the shard; where it is the launching process, the same command goes on. The commit protocol
makes both safe. (A call that never lets go of Python's interpreter lock goes unnoticed; torch lets
go of it.)
"""

import contextlib
import os
import threading
from collections.abc import Iterator

from transforms.core.exit_codes import UNFINISHED


@contextlib.contextmanager
def deadline(seconds: float, what: str) -> Iterator[None]:
    """End the process if the body takes longer.

    Args:
        seconds: Time that the body has.
        what: What it does, for the sentence.
    """
    timer = threading.Timer(seconds, _end, [seconds, what])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _end(seconds: float, what: str) -> None:
    sentence = (
        f"\n{what} took longer than {seconds:g} s, so the engine hangs and this process ends; "
        "nothing committed is lost: run the same command again to go on\n"
    )
    os.write(2, sentence.encode())
    os._exit(UNFINISHED)
