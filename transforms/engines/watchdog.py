"""A time limit for calls into an engine that ends the process when the engine hangs.

A call that hangs in a driver or a kernel cannot be cancelled from Python, and its thread keeps the
device. Giving the shard back would not help: the same process would fail the next shard too. So the
process ends with a message and exit code 1, as if it had been killed. If it is a worker of a
cluster, the runner starts another one and gives it the shard; if it is the launching process, the
same command continues. The commit protocol makes both safe.

A call that never releases Python's interpreter lock is not noticed; torch releases it.
"""

import contextlib
import os
import threading
from collections.abc import Iterator

from transforms.core.exit_codes import UNFINISHED


@contextlib.contextmanager
def watchdog(seconds: float, what: str) -> Iterator[None]:
    """End the process if the body takes longer than `seconds`.

    Args:
        seconds: Time limit of the body.
        what: What the body does, as the subject of the message: "painting a batch of images".
    """
    timer = threading.Timer(seconds, _end, [seconds, what])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _end(seconds: float, what: str) -> None:
    message = (
        f"\n{what} took longer than {seconds:g} s, so the engine hangs and this process ends; "
        "nothing committed is lost: run the same command again to continue\n"
    )
    os.write(2, message.encode())
    os._exit(UNFINISHED)
