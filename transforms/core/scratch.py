"""Files in the system's temporary folder: scratch folders, and the details of errors.

A scratch folder is deleted when its work ends, even if its process was killed: it holds a locked
file, and the lock ends with its process. So a folder whose lock is free is abandoned, and the next
process on the machine deletes it. Of the details of errors, the newest files are kept.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import IO

from transforms.core.errors import StorageError

PREFIX = "synclr-scratch-"
_LOCK = ".lock"
_ABANDONED_S = 3600.0
"""Age after which a folder that has no lock is abandoned: it gets one at once."""

DETAILS_PREFIX, DETAILS_SUFFIX = "synclr-", ".log"
DETAILS_KEPT = 20
"""Files with details of errors that stay."""


def temporary_folder() -> str:
    """Return the system's temporary folder.

    Raises:
        StorageError: No folder for temporary files can be written to.
    """
    try:
        return tempfile.gettempdir()
    except FileNotFoundError as error:
        raise StorageError(
            error.errno,
            f"no folder for temporary files can be written to ({error.strerror}): free some "
            "space there, or set TMPDIR to a folder on another disk",
        ) from error


@contextlib.contextmanager
def scratch_folder() -> Iterator[str]:
    """Create an empty folder in the system's temporary folder, and delete it at the end.

    Raises:
        StorageError: It cannot be created.
    """
    _remove_abandoned()
    parent = temporary_folder()
    try:
        folder, lock = _locked_folder()
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror
        raise StorageError(
            error.errno,
            f"cannot create a folder for scratch files in {parent}: {reason}; free some space "
            "there, or set TMPDIR to a folder on another disk, then run the same command again",
        ) from error
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
    for folder in Path(temporary_folder()).glob(PREFIX + "*"):
        # Folders of other users cannot be opened.
        with contextlib.suppress(OSError):
            if not (folder / _LOCK).exists():
                if folder.stat().st_mtime < time.time() - _ABANDONED_S:
                    shutil.rmtree(folder, ignore_errors=True)
                continue
            with open(folder / _LOCK) as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)


def write_details(text: str) -> str:
    """Write the details of an error to a file and return its path; delete the oldest such files.

    Raises:
        OSError: The file cannot be written.
    """
    descriptor, path = tempfile.mkstemp(prefix=DETAILS_PREFIX, suffix=DETAILS_SUFFIX, text=True)
    with open(descriptor, "w") as file:
        file.write(text)
    times = {}
    for other in Path(path).parent.glob(f"{DETAILS_PREFIX}*{DETAILS_SUFFIX}"):
        with contextlib.suppress(OSError):
            times[other] = other.stat().st_mtime
    for old in sorted(times, key=lambda other: times[other])[:-DETAILS_KEPT]:
        # Those of other users stay.
        with contextlib.suppress(OSError):
            old.unlink()
    return path
