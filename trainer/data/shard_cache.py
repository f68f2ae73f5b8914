"""Remote shards on local disk, within a bound: the least recently used go first.

Several workers share the folder. Files are named by their content's checksum, which is compared
before they get that name; they are whole or absent. A file that is evicted while another process
reads it stays readable to that process. What a killed process had half downloaded goes when a later
one makes room.
"""

import contextlib
import fcntl
import os
import tarfile
import time
from collections.abc import Iterator

from transforms.core import storage
from transforms.core.shards import file_sha256
from transforms.core.storage.local import temporary_path

ABANDONED_S = 3600.0
"""Age at which a download that nothing is added to any more is taken for a dead process's."""
NUM_LOCKS = 1024
"""Files that keep two processes from fetching the same shard; two shards rarely share one."""


class ShardCache:
    """Local copies of remote shards.

    Args:
        folder: Where they are kept; made when needed.
        max_bytes: Evict when the copies are larger than this in all; the newest always stays.
    """

    def __init__(self, folder: str, max_bytes: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes

    def open(self, url: str, sha256: str) -> int:
        """A file descriptor of the local copy, downloaded if it is not there.

        Raises:
            StorageError: It cannot be downloaded.
            tarfile.ReadError: It has another checksum.
        """
        path = self._path(sha256)
        while True:
            with contextlib.suppress(FileNotFoundError):  # Another worker may evict it meanwhile.
                descriptor = os.open(path, os.O_RDONLY)
                os.utime(descriptor)
                return descriptor
            with self._lock(sha256):
                if not os.path.exists(path):
                    _download(url, path, sha256)
                    self._evict(keep=path)

    def discard(self, sha256: str) -> None:
        """Delete a copy that has turned out damaged."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path(sha256))

    def _path(self, sha256: str) -> str:
        return os.path.join(self.folder, f"{sha256}.tar")

    def _evict(self, keep: str) -> None:
        copies = []
        for entry in os.scandir(self.folder):
            if entry.name.endswith(".part"):
                with contextlib.suppress(FileNotFoundError):
                    if time.time() - entry.stat().st_mtime > ABANDONED_S:
                        os.unlink(entry.path)
            elif entry.name.endswith(".tar") and not entry.name.startswith("."):
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat()
                    copies.append((status.st_mtime, status.st_size, entry.path))
        total = sum(size for _, size, _ in copies)
        for _, size, path in sorted(copies):
            if total <= self.max_bytes:
                return
            if path != keep:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
                total -= size

    @contextlib.contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        """One download of a shard at a time."""
        os.makedirs(self.folder, exist_ok=True)
        number = int(name[:8], 16) % NUM_LOCKS
        with open(os.path.join(self.folder, f".lock-{number:04d}"), "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _download(url: str, path: str, sha256: str) -> None:
    """Fetch a shard, once more if something happened to it on the way."""
    with temporary_path(path) as temporary:
        for _ in range(2):
            storage.download(url, temporary)
            if file_sha256(temporary) == sha256:
                os.replace(temporary, path)
                return
    raise tarfile.ReadError("it has another checksum than the index says")
