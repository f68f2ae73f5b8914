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
from typing import IO

PREFIX = "synclr-scratch-"
_LOCK = ".lock"


@contextlib.contextmanager
def scratch_folder() -> Iterator[str]:
    """A new empty folder below the system's temporary folder, removed at the end."""
    _remove_abandoned()
    folder, lock = _locked_folder()
    try:
        with lock:
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _locked_folder() -> tuple[str, IO[str]]:
    while True:
        folder = tempfile.mkdtemp(prefix=PREFIX)
        path = os.path.join(folder, _LOCK)
        lock = open(path, "w")  # noqa: SIM115
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Until it was locked, another process that tidies up could take the folder for abandoned.
        if os.path.exists(path):
            return folder, lock
        lock.close()


@lru_cache(maxsize=1)
def _remove_abandoned() -> None:
    """Once per process: remove what killed processes left behind."""
    for folder in Path(tempfile.gettempdir()).glob(PREFIX + "*"):
        # A folder without a lock is being made at this moment; one of another user is theirs.
        with contextlib.suppress(OSError), open(folder / _LOCK) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
