"""Storage of runs: local disk, `memory://` and `gs://` behind one interface.

Files are published, never edited: a publish creates the final name exclusively or reports that it
existed already, and a reader never sees half a file. On GCS this is `ifGenerationMatch=0`
(`object_store`), on local disk a hard link to a synced temporary file (`local`). Every error is
raised as a `StorageError` with one sentence; `accessing` does the same for code that opens files
itself.
"""

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from typing import Protocol

from transforms.core.errors import (
    ConfigError,
    DamagedFileError,
    MissingFileError,
    StorageError,
)
from transforms.core.storage import local, memory, object_store
from transforms.core.storage.local import (
    is_temporary,
    sync,
    temporary_name,
    temporary_path,
)

_CONTINUE = "nothing committed is lost; fix the cause and run the same command again"


class Backend(Protocol):
    """One kind of storage. The modules `local`, `memory` and `object_store` implement it.

    They raise `FileNotFoundError` for a missing file, and otherwise whatever their library raises.
    """

    def exists(self, url: str) -> bool:
        """Return whether a file or folder has this name."""

    def read(self, url: str) -> bytes:
        """Return the content of a file."""

    def download(self, url: str, local_path: str) -> None:
        """Copy a file to local disk."""

    def walk(self, url: str) -> Iterator[tuple[str, int, float]]:
        """Yield every file below a folder: relative name, size, time of the last change."""

    def create(self, url: str, data: bytes) -> bool:
        """Create a whole file; return False if the name is taken."""

    def create_from_file(self, url: str, local_path: str) -> bool:
        """Create a whole file from a local one; return False if the name is taken."""

    def overwrite(self, url: str, data: bytes) -> None:
        """Create or replace a whole file."""

    def delete(self, url: str) -> None:
        """Delete a file."""

    def delete_folder(self, url: str) -> None:
        """Delete a folder and every file below it."""


def backend_of(url: str) -> Backend:
    """Return the storage that a path or URL belongs to.

    Raises:
        ConfigError: The URL has an unsupported scheme.
    """
    if is_local(url):
        return local
    if url.startswith("memory://"):
        return memory
    if url.startswith(("gs://", "gcs://")):
        return object_store
    raise ConfigError(f"{url!r}: expected a local path, gs://bucket/... or memory://...")


def join(url: str, *parts: str) -> str:
    """Return `url` and further path parts, joined by single slashes."""
    return "/".join([url.rstrip("/"), *(part.strip("/") for part in parts)])


def is_local(url: str) -> bool:
    """Return whether `url` is a path on a disk of this machine."""
    return "://" not in url


def exists(url: str) -> bool:
    """Return whether a file or folder has this name."""
    with accessing("look up", url):
        return backend_of(url).exists(url)


def read_bytes(url: str) -> bytes:
    """Return the whole content of a file.

    Raises:
        MissingFileError: The file does not exist.
        StorageError: The file cannot be read.
    """
    with accessing("read", url):
        return backend_of(url).read(url)


def download(url: str, local_path: str) -> None:
    """Copy a file to local disk; `local_path` is whole or absent, also after a power failure."""
    with accessing("download", url), temporary_path(local_path) as temporary:
        backend_of(url).download(url, temporary)
        sync(temporary)
        os.replace(temporary, local_path)


def list_files(url: str) -> dict[str, int]:
    """Return every file below a folder: name relative to it -> size in bytes.

    A folder that does not exist is empty. Names that start with a dot (temporary files) are left
    out. No request per file: on GCS one for each 1,000 files, several at once.
    """
    return {name: size for name, size, _ in _walk(url) if not _is_hidden(name)}


def list_times(url: str) -> dict[str, float]:
    """Return every file below a folder: name -> when it was written, in seconds since 1970."""
    return {name: modified for name, _, modified in _walk(url) if not _is_hidden(name)}


def list_unfinished(url: str) -> dict[str, float]:
    """Return the temporary files below a folder: name -> when they were last written to.

    A process that is killed leaves its own behind: on local disk every file that it was writing, on
    a server the parts of a large file.
    """
    return {name: written for name, _, written in _walk(url) if is_temporary(name)}


def list_abandoned(url: str, age_s: float) -> list[str]:
    """Return the names of the temporary files below a folder that nobody writes to any more.

    Ages are by the clock of the storage, which may differ from ours: by the time of a file that is
    written there for this purpose. If it cannot be written, they are by our clock.

    Args:
        url: The folder.
        age_s: Seconds since the last writing after which a file is abandoned.
    """
    probe = temporary_name("clock")
    with contextlib.suppress(StorageError):
        publish_bytes(b"", join(url, probe))
    try:
        written = list_unfinished(url)
    finally:
        with contextlib.suppress(StorageError):
            delete(join(url, probe))
    now = written.pop(probe, time.time())
    return [name for name, time_s in written.items() if time_s < now - age_s]


def publish_file(local_path: str, url: str) -> bool:
    """Create `url` with the content of a local file, unless the name is taken.

    Returns:
        True if this call created it, False if it existed already (whatever its content).

    Raises:
        StorageError: The disk is full, the server refuses, access is denied, ...
    """
    with accessing("write", url):
        return backend_of(url).create_from_file(url, local_path)


def publish_bytes(data: bytes, url: str) -> bool:
    """Create `url` with `data`, unless the name is taken; see `publish_file`."""
    with accessing("write", url):
        return backend_of(url).create(url, data)


def replace_bytes(data: bytes, url: str) -> None:
    """Write a derived file (index, report, checkpoint pointer), in place of an older one.

    Readers see the old content or the new, never a mixture. Shards and commit records are never
    written this way.
    """
    with accessing("write", url):
        backend_of(url).overwrite(url, data)


def update_bytes(data: bytes, url: str) -> None:
    """Write a derived file like `replace_bytes`, unless it has this content already."""
    try:
        if read_bytes(url) == data:
            return
    except MissingFileError:
        pass
    replace_bytes(data, url)


def check_writable(folder: str) -> None:
    """Check before long work that its results can be written to a folder.

    Raises:
        StorageError: They cannot.
    """
    probe = join(folder, ".writable")
    replace_bytes(b"", probe)
    delete(probe)


def delete(url: str) -> None:
    """Delete a file. A missing file is no error, so that several processes may clean up at once."""
    with accessing("delete", url), contextlib.suppress(FileNotFoundError):
        backend_of(url).delete(url)


def delete_folder(url: str) -> None:
    """Delete a folder of scratch files. A missing folder is no error."""
    with accessing("delete", url), contextlib.suppress(FileNotFoundError):
        backend_of(url).delete_folder(url)


@contextlib.contextmanager
def accessing(action: str, url: str) -> Iterator[None]:
    """Translate what the system or a storage library raises into a `StorageError`.

    The other translator, for the content of files, is `errors.reading`.

    Args:
        action: What the body does with the file, a verb: "read", "write", ...
        url: Path or URL of the file, for the sentence.

    Raises:
        MissingFileError: The file does not exist.
        StorageError: Anything else that the disk or the server refuses.
    """
    try:
        yield
    except (StorageError, DamagedFileError, ConfigError):
        raise
    except FileNotFoundError as error:
        reason = "there is no such file"
        if action == "write":
            reason = "its folder cannot be made" if is_local(url) else "there is no such bucket"
        raise MissingFileError(error.errno, f"cannot {action} {url}: {reason}") from error
    except OSError as error:
        reason = error.strerror or _one_line(error)
        if error.errno == errno.ENOSPC:
            reason = "the disk is full"
        elif isinstance(error, TimeoutError) and not is_local(url):
            reason = "the server does not answer"
        name = error.filename
        if isinstance(name, str) and name != url and not is_temporary(name):
            reason = f"{reason} ({name})"
        raise StorageError(error.errno, f"cannot {action} {url}: {reason}; {_CONTINUE}") from error
    except Exception as error:
        if is_local(url) or not object_store.is_failure(error):
            raise
        reason = f"the server answered {_one_line(error)!r} and retrying did not help"
        raise StorageError(None, f"cannot {action} {url}: {reason}; {_CONTINUE}") from error


def _walk(url: str) -> Iterator[tuple[str, int, float]]:
    with accessing("list", url), contextlib.suppress(FileNotFoundError):
        yield from backend_of(url).walk(url)


def _is_hidden(name: str) -> bool:
    return os.path.basename(name).startswith(".")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
