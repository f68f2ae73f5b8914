"""A bounded cache of remote shards on local disk; evicts the least recently used.

Several processes share the folder. A file is named by the checksum of its content, which is checked
before the file gets its name, so a file is either complete or absent. A process that reads a file
while another one evicts it can finish reading. Partial downloads of killed processes are deleted by
a later eviction.
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
"""Seconds without new data after which a partial download is considered abandoned."""
NUM_LOCKS = 1024
"""Number of lock files, which keep two processes from downloading the same shard at once."""


class ShardCache:
    """Local copies of remote shards.

    Args:
        folder: Folder of the copies; created when needed.
        max_bytes: Maximum total size of the copies; the newest copy is always kept.
    """

    def __init__(self, folder: str, max_bytes: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes

    def open(self, url: str, sha256: str) -> int:
        """Open the local copy of a shard, which is downloaded if needed.

        Args:
            url: URL of the shard.
            sha256: Checksum of the shard, in hex digits.

        Returns:
            A file descriptor, which the caller closes.

        Raises:
            StorageError: The shard cannot be downloaded.
            tarfile.ReadError: The download has another checksum.
        """
        path = self._path(sha256)
        while True:
            with contextlib.suppress(FileNotFoundError):  # Another process may evict it.
                descriptor = os.open(path, os.O_RDONLY)
                os.utime(descriptor)
                return descriptor
            with self._lock(sha256):
                if not os.path.exists(path):
                    _download(url, path, sha256)
                    self._evict(keep=path)

    def discard(self, sha256: str) -> None:
        """Delete a copy that turned out to be damaged."""
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
        """Hold the lock for downloading a shard."""
        os.makedirs(self.folder, exist_ok=True)
        number = int(name[:8], 16) % NUM_LOCKS
        with open(os.path.join(self.folder, f".lock-{number:04d}"), "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _download(url: str, path: str, sha256: str) -> None:
    """Download a shard; if its checksum is wrong, try once more."""
    with temporary_path(path) as temporary:
        for _ in range(2):
            storage.download(url, temporary)
            if file_sha256(temporary) == sha256:
                os.replace(temporary, path)
                return
    raise tarfile.ReadError("it has another checksum than the index says")
