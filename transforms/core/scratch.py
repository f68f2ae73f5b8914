"""Scratch folders on local disk, deleted when their work ends, even if their process was killed.

Each folder holds a locked file. The lock ends with its process, so a folder whose lock is free is
abandoned, and the next process on the machine deletes it.
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
    """Create an empty folder in the system's temporary folder, and delete it at the end."""
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
        # Before it was locked, another process could take the folder for abandoned and delete it.
        if os.path.exists(path):
            return folder, lock
        lock.close()


@lru_cache(maxsize=1)
def _remove_abandoned() -> None:
    """Delete the folders of killed processes, once per process."""
    for folder in Path(tempfile.gettempdir()).glob(PREFIX + "*"):
        # A folder without a lock is just being made; folders of other users cannot be opened.
        with contextlib.suppress(OSError), open(folder / _LOCK) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
