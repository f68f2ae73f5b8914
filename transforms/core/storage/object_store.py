"""Storage on Google Cloud Storage (`gs://`), through gcsfs.

gcsfs tries each request six times, after 1, 2, 4, 8 and 16 seconds and a random part of one more,
when the server answers 408, 429 or 5xx or the connection is lost; then it raises the error. It has
no limit for a server that sends nothing more, or reads nothing more of an upload, so we set one.
"""

import logging
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import lru_cache, partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from transforms.core.storage.local import temporary_name

log = logging.getLogger(__name__)

SILENCE_S = 15.0
"""Seconds without any traffic after which a connection is lost, and the request tried again. With
six tries and the waits between them, a silent server is given up after two minutes."""

_STREAMS = 16
"""Connections at once, at most, in a listing and for a large file."""
_STREAMS_WANTED = 5
"""Parallel streams of pages that a listing aims for, if there are enough folders."""
_PAGE = 10_000
"""Files asked for per answer; GCS itself gives 1,000 at most."""
_PART_BYTES, _PARTS = 64 << 20, 32
"""Smallest size of a part of a large file, and how many parts GCS composes at most."""


def exists(url: str) -> bool:
    """Return whether a file or folder has this name."""
    return bool(filesystem().exists(url))


def read(url: str) -> bytes:
    """Return the content of a file."""
    content: bytes = filesystem().cat_file(url)
    return content


def download(url: str, local_path: str) -> None:
    """Copy a file to local disk."""
    # gcsfs would ask several times at once, and try each of these requests 36 times.
    filesystem().get_file(url, local_path, concurrency=1)


def walk(url: str) -> Iterator[tuple[str, int, float]]:
    """Yield every file below a folder: relative name, size, time at which it was written.

    One request lists the folder itself. The files below its folders follow in several streams of
    pages at once; each stream takes the folders whose names begin alike.
    """
    bucket, _, key = url.partition("://")[2].rstrip("/").partition("/")
    root = f"{key}/" if key else ""
    list_pages = partial(_list_pages, filesystem(), bucket)
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
    """Return the shortest beginnings of equal length that divide the names among the streams."""
    for length in range(1, max(map(len, names), default=0) + 1):
        beginnings = sorted({name[:length] for name in names})
        if len(beginnings) >= min(_STREAMS_WANTED, len(names)):
            return beginnings
    return []


def _list_pages(
    files: Any, bucket: str, delimiter: str | None, prefix: str
) -> tuple[list[str], list[tuple[str, int, float]]]:
    """Return the folders (with a delimiter) and files whose names in the bucket have a prefix.

    A folder may appear more than once: some servers name all of them on each page. The request
    asks for the used fields only; the full answer would be ten times as long.
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
    """Create a whole file; return False if the name is taken."""
    try:
        # One request, whatever the size: the precondition and the content arrive together, and
        # a connection that is cut half-way leaves nothing behind.
        filesystem().pipe_file(url, data, mode="create", chunksize=len(data) + 1)
    except FileExistsError:
        return False
    return True


def create_from_file(url: str, local_path: str) -> bool:
    """Create a whole file from a local one; return False if the name is taken."""
    return create(url, Path(local_path).read_bytes())


def overwrite(url: str, data: bytes) -> None:
    """Create or replace a whole file; a large one over several connections."""
    if len(data) <= _PART_BYTES:
        filesystem().pipe_file(url, data)
    else:
        _overwrite_in_parts(url, memoryview(data))


def _overwrite_in_parts(url: str, data: memoryview) -> None:
    """Upload hidden parts, let the server compose them in one step, and delete them."""
    files = filesystem()
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
    """Delete a part; the file is written, so a failure is only logged."""
    try:
        files.rm_file(part)
    except FileNotFoundError:
        pass
    except Exception as error:
        if not is_failure(error):
            raise
        log.warning("%s stays: %s", part, error)


def delete(url: str) -> None:
    """Delete a file; raise `FileNotFoundError` if there is none."""
    filesystem().rm_file(url)


def delete_folder(url: str) -> None:
    """Delete all files below a folder, many per request; `FileNotFoundError` if there are none."""
    filesystem().rm(url, recursive=True)


@lru_cache(maxsize=1)
def filesystem() -> Any:
    """Return the connection to GCS; the address of the server comes from the environment once."""
    import aiohttp

    # gcsfs also logs a traceback of each error that it raises.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    # The plain class: the one that fsspec chooses asks for a gRPC endpoint first, which emulators
    # and proxies of GCS do not have (it waits a minute for it).
    from gcsfs.core import GCSFileSystem, _location

    _check_address(urlsplit(_location()).hostname)

    class Connection(GCSFileSystem):
        session_kwargs: dict[str, Any]

        async def _set_session(self) -> Any:
            if self._session is None and not getattr(self, "_use_client_cert", False):
                connector = aiohttp.TCPConnector(socket_factory=_open_socket)
                self.session_kwargs = {**self.session_kwargs, "connector": connector}
            return await super()._set_session()

    limits = aiohttp.ClientTimeout(total=None, sock_connect=SILENCE_S, sock_read=SILENCE_S)
    return Connection(use_listings_cache=False, requests_timeout=limits)


def _check_address(host: str | None) -> None:
    """Raise an `OSError` if the name of the server is unknown: trying again would not help.

    gcsfs would try for half a minute, after a search for credentials on this machine's network.
    """
    try:
        socket.getaddrinfo(host, None)
    except socket.gaierror as error:
        if error.errno == socket.EAI_NONAME:
            reason = f"the network of this machine knows no address of the server {host}"
            raise OSError(error.errno, reason) from error


def _open_socket(address: tuple[Any, ...]) -> socket.socket:
    """Return a socket that also fails when the server reads nothing more of an upload."""
    family, kind, protocol, *_ = address
    opened = socket.socket(family, kind, protocol)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux only.
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(SILENCE_S * 1000))
    return opened


def forget_connections() -> None:
    """Connect again on next use, to the server that the environment names by then."""
    filesystem.cache_clear()


def is_failure(error: Exception) -> bool:
    """Return whether an exception is about the server or the connection, not our own mistake."""
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
