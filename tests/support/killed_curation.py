"""A curation that is killed by SIGKILL once it has written a number of files.

python -m tests.support.killed_curation URL NUM_WRITES
"""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from pipelines import curate
from tests.support.curation import config
from transforms.core import storage


def main(url: str, num_writes: int) -> None:
    """Curate the run at `url`; the process dies at the write after `num_writes`."""
    written = 0

    def dying(write: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any) -> Any:
            nonlocal written
            if written == num_writes:
                os.kill(os.getpid(), signal.SIGKILL)
            written += 1
            return write(*arguments)

        return counted

    for name in ("replace_bytes", "publish_bytes", "publish_file"):
        setattr(storage, name, dying(getattr(storage, name)))
    # Several tasks a step; the result does not depend on it.
    curate.CAPTIONS_PER_TASK = 40
    curate.run(config(url), [])


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
