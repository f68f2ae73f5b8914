"""Storage in the memory of this process (`memory://`), through fsspec; for tests and trials.

fsspec shows a file while it is written, so one lock makes every call one step.
"""

import threading
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

_LOCK = threading.RLock()


def exists(url: str) -> bool:
    """Return whether a file or folder has this name."""
    with _LOCK:
        return bool(_files().exists(url))


def read(url: str) -> bytes:
    """Return the content of a file."""
    with _LOCK:
        content: bytes = _files().cat_file(url)
        return content


def download(url: str, local_path: str) -> None:
    """Copy a file to local disk."""
    Path(local_path).write_bytes(read(url))


def walk(url: str) -> Iterator[tuple[str, int, float]]:
    """Yield every file below a folder: relative name, size, time at which it was written."""
    root = str(_files()._strip_protocol(url)).rstrip("/") + "/"
    with _LOCK:
        found = _files().find(url, detail=True)
    for name, info in found.items():
        yield name.removeprefix(root), int(info["size"]), float(info["created"])


def create(url: str, data: bytes) -> bool:
    """Create a whole file; return False if the name is taken."""
    with _LOCK:
        if _files().exists(url):
            return False
        _files().pipe_file(url, data)
        return True


def create_from_file(url: str, local_path: str) -> bool:
    """Create a whole file from a local one; return False if the name is taken."""
    return create(url, Path(local_path).read_bytes())


def overwrite(url: str, data: bytes) -> None:
    """Create or replace a whole file."""
    with _LOCK:
        _files().pipe_file(url, data)


def delete(url: str) -> None:
    """Delete a file; raise `FileNotFoundError` if there is none."""
    with _LOCK:
        _files().rm_file(url)


def delete_folder(url: str) -> None:
    """Delete every file below a folder; raise `FileNotFoundError` if there are none."""
    with _LOCK:
        _files().rm(url, recursive=True)


@lru_cache(maxsize=1)
def _files() -> Any:
    import fsspec

    return fsspec.filesystem("memory", use_listings_cache=False)
