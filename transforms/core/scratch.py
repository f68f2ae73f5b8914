"""Scratch folders on local disk: gone when their work ends, and when their process was killed.

Each folder holds a locked file. The lock goes with its process, so a folder whose lock is free
belongs to nobody, and the next process on the machine removes it.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

PREFIX = "synclr-scratch-"
_LOCK = ".lock"


@contextlib.contextmanager
def scratch_folder() -> Iterator[str]:
    """A new empty folder below the system's temporary folder, removed at the end."""
    _remove_abandoned()
    folder = tempfile.mkdtemp(prefix=PREFIX)
    try:
        with open(os.path.join(folder, _LOCK), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@lru_cache(maxsize=1)
def _remove_abandoned() -> None:
    """Once per process: remove what killed processes left behind."""
    for folder in Path(tempfile.gettempdir()).glob(PREFIX + "*"):
        # A folder without a lock is being made at this moment; one of another user is theirs.
        with contextlib.suppress(OSError), open(folder / _LOCK) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
