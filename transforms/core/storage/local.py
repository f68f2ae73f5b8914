"""Storage on local disk: a file has its final name only once it is whole.

A name is taken exclusively by a hard link or, on a file system that has none (FAT, some network
disks), by a rename that fails if the name exists.
"""

import contextlib
import ctypes
import errno
import logging
import os
import shutil
import uuid
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

log = logging.getLogger(__name__)

NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
"""Errors of a hard link on a file system that has none."""
NOT_SUPPORTED = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
"""Errors of a system call, or of an option, that a file system does not have."""
_HERE, _NO_REPLACE = -100, 1
"""AT_FDCWD and RENAME_NOREPLACE of Linux."""


def exists(path: str) -> bool:
    """Return whether a file or folder has this name."""
    return os.path.exists(path)


def read(path: str) -> bytes:
    """Return the content of a file."""
    return Path(path).read_bytes()


def download(path: str, local_path: str) -> None:
    """Copy a file."""
    shutil.copyfile(path, local_path)


def walk(folder: str, prefix: str = "") -> Iterator[tuple[str, int, float]]:
    """Yield every file below a folder: relative name, size, time of the last change.

    Folders that start with a dot are left out.
    """
    try:
        entries = list(os.scandir(folder))
    except FileNotFoundError:
        return
    for entry in entries:
        if entry.is_dir():
            if not entry.name.startswith("."):
                yield from walk(entry.path, f"{prefix}{entry.name}/")
        else:
            with contextlib.suppress(FileNotFoundError):
                status = entry.stat()
                yield prefix + entry.name, status.st_size, status.st_mtime


def create(path: str, data: bytes) -> bool:
    """Create a whole file; return False if the name is taken."""
    with temporary_path(path) as temporary:
        _write_synced(data, temporary)
        return create_from_file(path, temporary)


def create_from_file(path: str, local_path: str) -> bool:
    """Give a whole file its final name, synced to disk; return False if the name is taken."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    try:
        sync(local_path)
        try:
            os.link(local_path, path)
        except OSError as error:
            if error.errno != errno.EXDEV and error.errno not in NO_LINKS:
                raise
            # Scratch is on another disk: copy the file to the disk of the final name first.
            with temporary_path(path) as temporary:
                shutil.copyfile(local_path, temporary)
                sync(temporary)
                _take_name(temporary, path)
    except FileExistsError:
        return False
    _sync_folder_of(path)
    return True


def overwrite(path: str, data: bytes) -> None:
    """Create or replace a whole file, synced to disk."""
    with temporary_path(path) as temporary:
        _write_synced(data, temporary)
        os.replace(temporary, path)
        _sync_folder_of(path)


def delete(path: str) -> None:
    """Delete a file; raise `FileNotFoundError` if there is none."""
    os.unlink(path)


def delete_folder(path: str) -> None:
    """Delete a folder with everything in it; raise `FileNotFoundError` if there is none."""
    shutil.rmtree(path)


@contextlib.contextmanager
def temporary_path(path: str) -> Iterator[str]:
    """Yield a hidden name in the folder of `path`, which is made; delete the file at the end."""
    folder, name = os.path.split(path)
    os.makedirs(folder or ".", exist_ok=True)
    temporary = os.path.join(folder, temporary_name(name))
    try:
        yield temporary
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def temporary_name(name: str) -> str:
    """Return a new hidden name for a file that gets the name `name` once it is whole."""
    return f".{name}.{uuid.uuid4().hex[:12]}.part"


def is_temporary(path: str) -> bool:
    """Return whether a file has a name of `temporary_name`."""
    name = os.path.basename(path)
    return name.startswith(".") and name.endswith(".part")


def sync(path: str) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_synced(data: bytes, path: str) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _take_name(temporary: str, path: str) -> None:
    """Give a temporary file of the same folder its final name.

    Raises:
        FileExistsError: The name is taken.
        OSError: The file system has no way to take a name exclusively.
    """
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        _rename_exclusively(temporary, path)


def _rename_exclusively(source: str, target: str) -> None:
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    number = errno.ENOSYS
    if rename is not None:
        names = os.fsencode(source), os.fsencode(target)
        if rename(_HERE, names[0], _HERE, names[1], _NO_REPLACE) == 0:
            return
        number = ctypes.get_errno()
    reason = os.strerror(number)
    if number in NOT_SUPPORTED:
        reason = (
            "its file system has neither hard links nor renames that never replace a file, so that "
            "two workers could overwrite each other's files: choose a `run` on another disk"
        )
    raise OSError(number, reason, target)


def _sync_folder_of(path: str) -> None:
    """Wait until the name of a file is on the disk."""
    folder = os.path.dirname(path) or "."
    try:
        sync(folder)
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise
        mount = os.path.abspath(folder)
        while not os.path.ismount(mount):
            mount = os.path.dirname(mount)
        _warn_of_folders(mount)


@lru_cache
def _warn_of_folders(mount: str) -> None:
    """Log once that a disk cannot promise to keep the names of files."""
    log.warning(
        "the file system of %s cannot sync folders: a power failure may lose its newest files; "
        "after one, check the run with `python -m pipelines verify RUN`",
        mount,
    )
