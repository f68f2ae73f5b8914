"""Storage on local disk: a file has its final name only once it is whole."""

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path


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
            if error.errno != errno.EXDEV:
                raise
            # Scratch is on another disk: copy the file to the disk of the final name first.
            with temporary_path(path) as temporary:
                shutil.copyfile(local_path, temporary)
                sync(temporary)
                os.link(temporary, path)
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


def _sync_folder_of(path: str) -> None:
    """Wait until the name of a file is on the disk."""
    sync(os.path.dirname(path) or ".")
