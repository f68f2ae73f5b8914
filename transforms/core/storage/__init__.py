"""All reading and writing of runs: local disk, `memory://` and `gs://` behind a few calls.

Files are published, never edited: a publish creates the final name exclusively or reports that it
was there already, and a reader never sees half a file. On GCS this is `ifGenerationMatch=0`
(`object_store`), on local disk a hard link to a synced temporary file (`local`). Whatever
goes wrong arrives as a `StorageError` with a sentence.
"""

import contextlib
import errno
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

from transforms.core.errors import MissingFileError, StorageError
from transforms.core.storage import local, object_store
from transforms.core.storage.local import sync, temporary_beside, write_synced

_MEMORY_LOCK = threading.RLock()
_GO_ON = "nothing committed is lost; mend the cause and run the same command again"


def join(url: str, *parts: str) -> str:
    """`url` and further path parts, joined by single slashes."""
    return "/".join([url.rstrip("/"), *(part.strip("/") for part in parts)])


def is_local(url: str) -> bool:
    """Whether `url` is a path on this machine's disk."""
    return "://" not in url


def exists(url: str) -> bool:
    """Whether a file or folder stands under this name."""
    with _sentences("look up", url):
        return os.path.exists(url) if is_local(url) else object_store.exists(url)


def read_bytes(url: str) -> bytes:
    """The whole content of a file.

    Raises:
        MissingFileError: There is no such file.
        StorageError: It cannot be read.
    """
    with _sentences("read", url):
        if is_local(url):
            return Path(url).read_bytes()
        return object_store.read(url)


def download(url: str, local_path: str) -> None:
    """Copy a file to local disk; `local_path` is whole or absent, also after a power failure."""
    with _sentences("download", url), temporary_beside(local_path) as temporary:
        if is_local(url):
            shutil.copyfile(url, temporary)
        else:
            object_store.download(url, temporary)
        sync(temporary)
        os.replace(temporary, local_path)


def list_files(url: str) -> dict[str, int]:
    """Every file below a folder: name relative to it -> size in bytes.

    A folder that does not exist is empty. Names that start with a dot (files under construction)
    are left out. No request per file: on GCS one for each 1,000 files, several at once.
    """
    return {name: size for name, size, _ in _walk(url)}


def list_times(url: str) -> dict[str, float]:
    """As `list_files`: name -> when it was written, in seconds since 1970."""
    return {name: modified for name, _, modified in _walk(url)}


def list_unfinished(url: str) -> dict[str, float]:
    """Files under construction below a folder: name -> when they were last written to.

    A process that is killed leaves its own behind on local disk, and on a server the parts of a
    large file.
    """
    return {name: written for name, _, written in _walk_all(url) if local.is_temporary(name)}


def publish_file(local_path: str, url: str) -> bool:
    """Create `url` with the content of a local file, if nothing stands there yet.

    Returns:
        True if this call created it, False if it was there already (whatever its content).

    Raises:
        StorageError: The disk is full, the server refuses, access is denied, ...
    """
    with _sentences("write", url):
        if is_local(url):
            return local.link(local_path, url)
        return object_store.create(url, Path(local_path).read_bytes())


def publish_bytes(data: bytes, url: str) -> bool:
    """As `publish_file`, from memory."""
    with _sentences("write", url):
        if is_local(url):
            with temporary_beside(url) as temporary:
                write_synced(data, temporary)
                return local.link(temporary, url)
        return object_store.create(url, data)


def replace_bytes(data: bytes, url: str) -> None:
    """Write a derived file (index, report, checkpoint pointer), in place of an older one.

    Readers see the old content or the new, never a mixture. Shards and commit records are never
    written this way.
    """
    with _sentences("write", url):
        if is_local(url):
            with temporary_beside(url) as temporary:
                write_synced(data, temporary)
                os.replace(temporary, url)
                local.sync_folder(url)
        else:
            object_store.overwrite(url, data)


def update_bytes(data: bytes, url: str) -> None:
    """As `replace_bytes`, but a file that says the same already stays as it is."""
    try:
        if read_bytes(url) == data:
            return
    except MissingFileError:
        pass
    replace_bytes(data, url)


def check_writable(folder: str) -> None:
    """Find out before long work whether its results can be written to a folder.

    Raises:
        StorageError: They cannot.
    """
    probe = join(folder, ".writable")
    replace_bytes(b"", probe)
    delete(probe)


def delete(url: str) -> None:
    """Remove a file; one that is not there is no error, so that several may tidy up at once."""
    with _sentences("delete", url), contextlib.suppress(FileNotFoundError):
        if is_local(url):
            os.unlink(url)
        else:
            object_store.delete(url)


def delete_folder(url: str) -> None:
    """Remove a folder of scratch files; one that is not there is no error."""
    with _sentences("delete", url), contextlib.suppress(FileNotFoundError):
        if is_local(url):
            shutil.rmtree(url)
        else:
            object_store.delete_folder(url)


def disk_full(action: str, path: str, error: OSError) -> StorageError:
    """The sentence for a full disk, also for files that others write."""
    return StorageError(error.errno, f"cannot {action} {path}: the disk is full; {_GO_ON}")


def _walk(url: str) -> Iterator[tuple[str, int, float]]:
    return (found for found in _walk_all(url) if not os.path.basename(found[0]).startswith("."))


def _walk_all(url: str) -> Iterator[tuple[str, int, float]]:
    with _sentences("list", url), contextlib.suppress(FileNotFoundError):
        yield from local.walk(url) if is_local(url) else object_store.walk(url)


@contextlib.contextmanager
def _sentences(action: str, url: str) -> Iterator[None]:
    """Turn whatever a storage library raises into a `StorageError` with a sentence.

    fsspec's memory shows files while they are written: there, one call at a time.
    """
    try:
        with _MEMORY_LOCK if url.startswith("memory://") else contextlib.nullcontext():
            yield
    except StorageError:
        raise
    except FileNotFoundError as error:
        reason = "there is no such file"
        if action == "write":
            reason = "its folder cannot be made" if is_local(url) else "there is no such bucket"
        raise MissingFileError(error.errno, f"cannot {action} {url}: {reason}") from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise disk_full(action, url, error) from error
        reason = error.strerror or _one_line(error)
        raise StorageError(error.errno, f"cannot {action} {url}: {reason}; {_GO_ON}") from error
    except Exception as error:
        if not object_store.is_failure(error):
            raise
        reason = f"the server answered {_one_line(error)!r} and retrying did not help"
        raise StorageError(None, f"cannot {action} {url}: {reason}; {_GO_ON}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
