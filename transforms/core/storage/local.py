"""What storage needs of a local disk: whole files under final names, or none."""

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Iterator


def walk(folder: str, prefix: str = "") -> Iterator[tuple[str, int, float]]:
    """Every file below a folder: its name, size, and the time it was written.

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


def link(local_path: str, final_path: str) -> bool:
    """Give a whole file its final name, synced to disk; False if the name is taken."""
    os.makedirs(os.path.dirname(final_path) or ".", exist_ok=True)
    try:
        sync(local_path)
        try:
            os.link(local_path, final_path)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            # Scratch is on another disk: copy next to the final name first.
            with temporary_beside(final_path) as temporary:
                shutil.copyfile(local_path, temporary)
                sync(temporary)
                os.link(temporary, final_path)
    except FileExistsError:
        return False
    sync_folder(final_path)
    return True


@contextlib.contextmanager
def temporary_beside(path: str) -> Iterator[str]:
    """A hidden name in the folder of `path`, which is made; gone at the end."""
    folder, name = os.path.split(path)
    os.makedirs(folder or ".", exist_ok=True)
    temporary = os.path.join(folder, temporary_name(name))
    try:
        yield temporary
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def temporary_name(name: str) -> str:
    """A new name for something that is to become a file of this name."""
    return f".{name}.{uuid.uuid4().hex[:12]}.part"


def is_temporary(path: str) -> bool:
    """Whether a file has a name of `temporary_name`."""
    name = os.path.basename(path)
    return name.startswith(".") and name.endswith(".part")


def write_synced(data: bytes, path: str) -> None:
    """Write a file and wait until the disk has it."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: str) -> None:
    """Wait until the disk has the name of the file at `path`."""
    sync(os.path.dirname(path) or ".")


def sync(path: str) -> None:
    """Wait until the disk has a file or folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
