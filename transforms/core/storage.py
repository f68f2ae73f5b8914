"""All reading and writing of runs: local disk, `memory://` and `gs://` behind a few calls.

Files are published, never edited: a publish creates the final name exclusively or reports that it
was there already, and a reader never sees half a file. On GCS this is `ifGenerationMatch=0`, on
local disk a hard link to a synced temporary file. gcsfs retries connection loss, 429 and 5xx six
times with exponential back-off (about half a minute) before an error reaches us.
"""

import contextlib
import errno
import os
import shutil
import threading
import uuid
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

_MEMORY_LOCK = threading.RLock()
_GO_ON = "nothing committed is lost; mend the cause and run the same command again"


class StorageError(OSError):
    """Storage failed; the message is one sentence: what, where, and how to go on."""

    def __str__(self) -> str:
        return str(self.args[-1])


class MissingFileError(StorageError):
    """A file that should be there is not."""


def join(url: str, *parts: str) -> str:
    """`url` and further path parts, joined by single slashes."""
    return "/".join([url.rstrip("/"), *(part.strip("/") for part in parts)])


def is_local(url: str) -> bool:
    """Whether `url` is a path on this machine's disk."""
    return "://" not in url


def exists(url: str) -> bool:
    """Whether a file or folder stands under this name."""
    with _sentences("look up", url):
        return os.path.exists(url) if is_local(url) else bool(_remote(url).exists(url))


def read_bytes(url: str) -> bytes:
    """The whole content of a file.

    Raises:
        MissingFileError: There is no such file.
        StorageError: It cannot be read.
    """
    with _sentences("read", url):
        if is_local(url):
            return Path(url).read_bytes()
        content: bytes = _remote(url).cat_file(url)
        return content


def download(url: str, local_path: str) -> None:
    """Copy a file to local disk; `local_path` is whole or absent, also when interrupted."""
    with _sentences("download", url), _temporary_beside(local_path) as temporary:
        if is_local(url):
            shutil.copyfile(url, temporary)
        else:
            _remote(url).get_file(url, temporary)
        os.replace(temporary, local_path)


def list_files(url: str) -> dict[str, int]:
    """Every file below a folder: name relative to it -> size in bytes. One listing, recursive.

    A folder that does not exist is empty. Names that start with a dot (files under construction)
    are left out.
    """
    with _sentences("list", url):
        if is_local(url):
            return dict(_walk(url, ""))
        filesystem = _remote(url)
        root = str(filesystem._strip_protocol(url)).rstrip("/") + "/"
        try:
            found = filesystem.find(url, detail=True)
        except FileNotFoundError:
            return {}
        return {
            name.removeprefix(root): int(info["size"])
            for name, info in found.items()
            if name.startswith(root) and not name.rpartition("/")[2].startswith(".")
        }


def publish_file(local_path: str, url: str) -> bool:
    """Create `url` with the content of a local file, if nothing stands there yet.

    Returns:
        True if this call created it, False if it was there already (whatever its content).

    Raises:
        StorageError: The disk is full, the server refuses, access is denied, ...
    """
    with _sentences("write", url):
        if is_local(url):
            return _link(local_path, url)
        return _pipe_exclusive(_remote(url), Path(local_path).read_bytes(), url)


def publish_bytes(data: bytes, url: str) -> bool:
    """As `publish_file`, from memory."""
    with _sentences("write", url):
        if is_local(url):
            with _temporary_beside(url) as temporary:
                _write_synced(data, temporary)
                return _link(temporary, url)
        return _pipe_exclusive(_remote(url), data, url)


def replace_bytes(data: bytes, url: str) -> None:
    """Write a derived file (index, report, checkpoint pointer), in place of an older one.

    Readers see the old content or the new, never a mixture. Shards and commit records are never
    written this way.
    """
    with _sentences("write", url):
        if is_local(url):
            with _temporary_beside(url) as temporary:
                _write_synced(data, temporary)
                os.replace(temporary, url)
                _sync_folder(url)
        else:
            _remote(url).pipe_file(url, data)


def update_bytes(data: bytes, url: str) -> None:
    """As `replace_bytes`, but a file that says the same already stays as it is."""
    try:
        if read_bytes(url) == data:
            return
    except MissingFileError:
        pass
    replace_bytes(data, url)


def disk_full(action: str, path: str, error: OSError) -> StorageError:
    """The sentence for a full disk, also for files that others write."""
    return StorageError(error.errno, f"cannot {action} {path}: the disk is full; {_GO_ON}")


@lru_cache(maxsize=4)
def _filesystem(protocol: str) -> Any:
    if protocol in ("gs", "gcs"):
        # The plain class: the one fsspec would choose asks for a gRPC endpoint first, which
        # emulators and proxies of GCS do not have (it waits a minute for it).
        from gcsfs.core import GCSFileSystem

        return GCSFileSystem(use_listings_cache=False)
    import fsspec

    return fsspec.filesystem(protocol, use_listings_cache=False)


def _remote(url: str) -> Any:
    protocol = url.partition("://")[0]
    if protocol not in ("gs", "gcs", "memory"):
        raise ValueError(f"{url!r}: expected a local path, gs://bucket/... or memory://...")
    return _filesystem(protocol)


def _walk(folder: str, prefix: str) -> Iterator[tuple[str, int]]:
    try:
        entries = list(os.scandir(folder))
    except FileNotFoundError:
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _walk(entry.path, f"{prefix}{entry.name}/")
        else:
            with contextlib.suppress(FileNotFoundError):
                yield prefix + entry.name, entry.stat().st_size


def _link(local_path: str, url: str) -> bool:
    """Give a whole, synced file its final name; the link fails if the name is taken."""
    os.makedirs(os.path.dirname(url) or ".", exist_ok=True)
    try:
        _sync(local_path)
        try:
            os.link(local_path, url)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            # Scratch is on another disk: copy next to the final name first.
            with _temporary_beside(url) as temporary:
                shutil.copyfile(local_path, temporary)
                _sync(temporary)
                os.link(temporary, url)
    except FileExistsError:
        return False
    _sync_folder(url)
    return True


def _pipe_exclusive(filesystem: Any, data: bytes, url: str) -> bool:
    if url.startswith("memory://"):
        if filesystem.exists(url):
            return False
        filesystem.pipe_file(url, data)
        return True
    try:
        # One request, whatever the size: the precondition and the content arrive together, and
        # a connection cut half-way leaves nothing behind.
        filesystem.pipe_file(url, data, mode="create", chunksize=len(data) + 1)
    except FileExistsError:
        return False
    return True


@contextlib.contextmanager
def _temporary_beside(path: str) -> Iterator[str]:
    folder, name = os.path.split(path)
    os.makedirs(folder or ".", exist_ok=True)
    temporary = os.path.join(folder, f".{name}.{uuid.uuid4().hex[:12]}.part")
    try:
        yield temporary
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _write_synced(data: bytes, path: str) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(path: str) -> None:
    _sync(os.path.dirname(path) or ".")


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
        raise MissingFileError(error.errno, f"cannot {action} {url}: there is no such file") from (
            error
        )
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise disk_full(action, url, error) from error
        reason = error.strerror or _one_line(error)
        raise StorageError(error.errno, f"cannot {action} {url}: {reason}; {_GO_ON}") from error
    except Exception as error:
        if not _is_remote_failure(error):
            raise
        reason = f"the server answered {_one_line(error)!r} and retrying did not help"
        raise StorageError(None, f"cannot {action} {url}: {reason}; {_GO_ON}") from error


def _is_remote_failure(error: Exception) -> bool:
    import aiohttp
    import google.auth.exceptions
    import requests
    from gcsfs.retry import ChecksumError, HttpError

    kinds: tuple[type[Exception], ...] = (
        HttpError,
        ChecksumError,
        aiohttp.ClientError,
        google.auth.exceptions.GoogleAuthError,
        requests.RequestException,
    )
    return isinstance(error, kinds)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
