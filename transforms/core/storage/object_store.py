"""What storage needs of `gs://` and `memory://`, through fsspec.

gcsfs tries each request six times, after 1, 2, 4, 8 and 16 seconds and a random part of one more,
when the server answers 408, 429 or 5xx or the connection is lost; then the error reaches us. What
it lacks is a limit for a server that accepts a request and says nothing more.
"""

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import lru_cache, partial
from typing import Any

from transforms.core.errors import ConfigError
from transforms.core.storage.local import temporary_name

log = logging.getLogger(__name__)

SILENCE_S = 120.0
"""A connection on which nothing has moved for so long is lost, and the request tried again."""

_STREAMS = 16
"""Connections at once, at most, in a listing and for a large file."""
_STREAMS_WANTED = 5
"""Streams of pages in a listing, if there are folders enough."""
_PAGE = 10_000
"""Files in an answer; GCS itself gives 1,000 at most."""
_PART_BYTES, _PARTS = 64 << 20, 32
"""Size of a part of a large file at least, and how many GCS puts together at most."""


def exists(url: str) -> bool:
    """Whether a file or folder stands there."""
    return bool(filesystem(url).exists(url))


def read(url: str) -> bytes:
    """The content of a file."""
    content: bytes = filesystem(url).cat_file(url)
    return content


def download(url: str, local_path: str) -> None:
    """Copy a file to local disk."""
    filesystem(url).get_file(url, local_path)


def walk(url: str) -> Iterator[tuple[str, int, float]]:
    """Every file below a folder: its name, size, and the time it was written.

    On GCS one request for the folder itself. Then what is below its folders, in several streams of
    pages at once, each stream taking the folders whose names begin alike.
    """
    if url.startswith("memory://"):
        files = filesystem(url)
        root = str(files._strip_protocol(url)).rstrip("/") + "/"
        for name, info in files.find(url, detail=True).items():
            yield name.removeprefix(root), int(info["size"]), float(info["created"])
        return
    bucket, _, key = url.partition("://")[2].rstrip("/").partition("/")
    root = f"{key}/" if key else ""
    list_pages = partial(_list_pages, filesystem(url), bucket)
    folders, found = list_pages("/", root)
    yield from ((name.removeprefix(root), size, written) for name, size, written in found)
    beginnings = _beginnings({folder.removeprefix(root) for folder in folders})
    with ThreadPoolExecutor(_STREAMS, "list") as pool:
        prefixes = [root + beginning for beginning in beginnings]
        for _, found in pool.map(partial(list_pages, None), prefixes):
            for name, size, written in found:
                if "/" in name.removeprefix(root):
                    yield name.removeprefix(root), size, written


def _beginnings(names: set[str]) -> list[str]:
    """The shortest beginnings of equal length that tell enough of the names apart."""
    for length in range(1, max(map(len, names), default=0) + 1):
        beginnings = sorted({name[:length] for name in names})
        if len(beginnings) >= min(_STREAMS_WANTED, len(names)):
            return beginnings
    return []


def _list_pages(
    files: Any, bucket: str, delimiter: str | None, prefix: str
) -> tuple[list[str], list[tuple[str, int, float]]]:
    """The folders (with a delimiter) and files whose full names in the bucket begin so.

    A folder may be named more than once: some servers name all of them on each page.

    Only what is used is asked for: the full answer would be ten times as long.
    """
    folders: list[str] = []
    found: list[tuple[str, int, float]] = []
    token = None
    while True:
        page = files.call(
            "GET", "b/{}/o", bucket, json_out=True, prefix=prefix, delimiter=delimiter,
            fields="items(name,size,updated),prefixes,nextPageToken", pageToken=token,
            maxResults=_PAGE,
        )  # fmt: skip
        folders += page.get("prefixes", [])
        for item in page.get("items", []):
            # Some tools put an empty object where they think that a folder should be.
            if not item["name"].endswith("/"):
                written = datetime.fromisoformat(item["updated"]).timestamp()
                found.append((item["name"], int(item["size"]), written))
        token = page.get("nextPageToken")
        if token is None:
            return folders, found


def create(url: str, data: bytes) -> bool:
    """Write a file that must not be there yet; False if it is.

    In memory the caller's lock makes the look and the write one step.
    """
    files = filesystem(url)
    if url.startswith("memory://"):
        if files.exists(url):
            return False
        files.pipe_file(url, data)
        return True
    try:
        # One request, whatever the size: the precondition and the content arrive together, and
        # a connection cut half-way leaves nothing behind.
        files.pipe_file(url, data, mode="create", chunksize=len(data) + 1)
    except FileExistsError:
        return False
    return True


def overwrite(url: str, data: bytes) -> None:
    """Write a file in place of another, or a new one; a large one over several connections."""
    if url.startswith("memory://") or len(data) <= _PART_BYTES:
        filesystem(url).pipe_file(url, data)
    else:
        _overwrite_in_parts(url, memoryview(data))


def _overwrite_in_parts(url: str, data: memoryview) -> None:
    """Upload parts as hidden files, have the server put them together in one step, remove them."""
    files = filesystem(url)
    folder, _, name = url.rpartition("/")
    size = max(_PART_BYTES, -(-len(data) // _PARTS))
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    parts = [f"{folder}/{temporary_name(name)}" for _ in pieces]
    try:
        with ThreadPoolExecutor(_STREAMS, "upload") as pool:
            list(pool.map(files.pipe_file, parts, pieces))
        files.merge(url, parts)
    finally:
        with ThreadPoolExecutor(_STREAMS, "remove") as pool:
            list(pool.map(partial(_remove_part, files), parts))


def _remove_part(files: Any, part: str) -> None:
    """One that cannot be removed must not spoil a file that is written."""
    try:
        files.rm_file(part)
    except FileNotFoundError:
        pass
    except Exception as error:
        if not is_failure(error):
            raise
        log.warning("%s stays: %s", part, error)


def delete(url: str) -> None:
    """Remove a file; `FileNotFoundError` if there is none."""
    filesystem(url).rm_file(url)


def delete_folder(url: str) -> None:
    """Remove all files below a folder, many a request; `FileNotFoundError` if there are none."""
    filesystem(url).rm(url, recursive=True)


def filesystem(url: str) -> Any:
    """The fsspec file system of a URL.

    Raises:
        ConfigError: It is of a kind that we do not support.
    """
    protocol = url.partition("://")[0]
    if protocol not in ("gs", "gcs", "memory"):
        raise ConfigError(f"{url!r}: expected a local path, gs://bucket/... or memory://...")
    return _filesystem(protocol)


def forget_connections() -> None:
    """Look for the server anew: its address is read from the environment once."""
    _filesystem.cache_clear()


def is_failure(error: Exception) -> bool:
    """Whether an exception is about the server or the way to it, and not a mistake of ours."""
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


@lru_cache(maxsize=4)
def _filesystem(protocol: str) -> Any:
    if protocol == "memory":
        import fsspec

        return fsspec.filesystem(protocol, use_listings_cache=False)
    import aiohttp

    # It would print a traceback for each error that it also raises.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    # The plain class: the one fsspec would choose asks for a gRPC endpoint first, which emulators
    # and proxies of GCS do not have (it waits a minute for it).
    from gcsfs.core import GCSFileSystem

    limits = aiohttp.ClientTimeout(total=None, sock_connect=SILENCE_S, sock_read=SILENCE_S)
    return GCSFileSystem(use_listings_cache=False, requests_timeout=limits)
