"""The commit protocol: a shard is built in scratch space, published once and never changed again.

Safe when two workers make the same shard at once, and when a worker dies at any point:

1. The shard file is published by exclusive create; the worker that loses adopts the winner's file.
2. Dead letters follow: exactly the expected records that the published file does not hold.
3. The commit record is published last, and is the commit.
"""

import contextlib
import dataclasses
import errno
import hashlib
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from transforms.core import storage
from transforms.core.counters import Count, Tally
from transforms.core.dead_letters import failed_ids
from transforms.core.errors import DamagedFileError, MissingFileError, reading
from transforms.core.fingerprint import library_versions
from transforms.core.records import FAILURE_SCHEMA, Failure, to_table
from transforms.core.references import redacted
from transforms.core.scratch import scratch_folder
from transforms.core.shards import (
    CommitRecord,
    StageFolder,
    encode_commit,
    file_sha256,
    read_commit,
)
from transforms.core.stages import Produced


class ShardBuild:
    """A shard under construction in scratch space; a context manager.

    Args:
        folder: Folder of the stage.
        shard: Number of the shard.
        metadata: Metadata of the stage, against which the file of another worker is checked.
    """

    def __init__(
        self, folder: StageFolder, shard: int, metadata: Mapping[str, str] | None = None
    ) -> None:
        self.folder = folder
        self.shard = shard
        self._metadata = metadata or {}
        self._failures: dict[str, Failure] = {}
        self._ids: list[str] = []
        self._built = False
        self._started = time.monotonic()
        self._cleanup = contextlib.ExitStack()

    def __enter__(self) -> "ShardBuild":
        name = os.path.basename(self.folder.shard_path(self.shard))
        self._path = os.path.join(self._cleanup.enter_context(scratch_folder()), name)
        return self

    def __exit__(self, *exception: object) -> None:
        self._cleanup.close()

    def write(self, produced: Iterable[Produced] | pa.Table) -> None:
        """Build the file from the samples and set failures aside; a table holds samples only."""
        samples = produced if isinstance(produced, pa.Table) else self._samples(produced)
        try:
            self._ids = self.folder.kind.format.write(self._path, samples)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise  # Perhaps the producer's: its records are made while the file is written.
            with storage.accessing("write", self._path):
                raise
        self._built = True

    def published_by_another(self, expected_ids: Sequence[str]) -> bool:
        """Return whether another worker left a file that needs nothing but its commit record.

        If records are missing that no dead-letter file names, the shard is made again, to learn
        the reasons.

        Args:
            expected_ids: Ids of all records of the shard.
        """
        url = self.folder.shard_url(self.shard)
        if not storage.exists(url):
            return False
        self._adopt(url, expected_ids)
        missing = set(expected_ids) - set(self._ids)
        return not missing or self._letters_there() == missing

    def _samples(self, produced: Iterable[Produced]) -> Iterator[Produced]:
        for record in produced:
            if isinstance(record, Failure):
                # An exception may name an address or a folder.
                detail = redacted(record.detail)
                self._failures[record.record_id] = dataclasses.replace(record, detail=detail)
            else:
                yield record

    def commit(self, expected_ids: Sequence[str], fingerprint: str, tally: Tally) -> CommitRecord:
        """Publish the file, the dead letters and the commit record, or adopt what is there.

        Args:
            expected_ids: Ids of all records of the shard, in order.
            fingerprint: Digest of the run's fingerprint.
            tally: Counters to write into the record.

        Returns:
            The valid commit record, ours or another worker's.
        """
        if self._built:
            self._check_complete(expected_ids)
        url = self.folder.shard_url(self.shard)
        if not self._built or not storage.publish_file(self._path, url):
            if storage.exists(self.folder.commit_url(self.shard)):
                return read_commit(self.folder, self.shard)
            self._adopt(url, expected_ids)
        held = set(self._ids)
        missing = [record_id for record_id in expected_ids if record_id not in held]
        self._publish_failures(missing, tally)
        record = CommitRecord(
            shard=self.shard,
            path=self.folder.shard_path(self.shard),
            sha256=file_sha256(self._path),
            num_bytes=os.path.getsize(self._path),
            num_samples=len(self._ids),
            num_failures=len(missing),
            fingerprint=fingerprint,
            seconds=round(time.monotonic() - self._started, 3),
            counts=tally.as_dict(),
            versions=dict(library_versions()),
        )
        if storage.publish_bytes(encode_commit(record), self.folder.commit_url(self.shard)):
            return record
        return read_commit(self.folder, self.shard)

    def _check_complete(self, expected_ids: Sequence[str]) -> None:
        made = [*self._ids, *self._failures]
        if len(made) != len(set(made)) or set(made) != set(expected_ids):
            raise RuntimeError(
                f"shard {self.shard} of {self.folder.url} must have {len(expected_ids)} records, "
                f"each once, but its producer gave {len(self._ids)} samples and "
                f"{len(self._failures)} failures ({len(set(made) ^ set(expected_ids))} differ)"
            )

    def _adopt(self, url: str, expected_ids: Sequence[str]) -> None:
        """Take over the file of another worker that published it and has not committed it (yet)."""
        storage.download(url, self._path)
        content = Path(self._path).read_bytes()
        try:
            self._ids = check_uncommitted(self.folder, content, self._metadata, expected_ids)
        except DamagedFileError as error:
            raise DamagedFileError(
                f"{url} is damaged and not committed ({error}): delete it and run again"
            ) from error

    def _letters_there(self) -> set[str] | None:
        """Return the ids in the dead-letter file, None if there is none or it is damaged."""
        try:
            return failed_ids(self.folder, self.shard)
        except (DamagedFileError, MissingFileError):
            return None

    def _publish_failures(self, missing: Sequence[str], tally: Tally) -> None:
        """Write the dead letters, unless another worker wrote those of the same file.

        Letters about other records belonged to a file that is deleted, and are replaced.
        """
        url = self.folder.failures_url(self.shard)
        if not missing:
            storage.delete(url)
            return
        failures = []
        for record_id in missing:
            failure = self._failures.get(record_id)
            if failure is None:
                tally.count(Count.LOST_RECORD)
                detail = "the worker that published the shard died before it wrote its reasons"
                failure = Failure(record_id, str(Count.LOST_RECORD), detail)
            failures.append(failure)
        path = self._path + ".failures"
        with storage.accessing("write", path):
            pq.write_table(to_table(failures, FAILURE_SCHEMA), path)
        if not storage.publish_file(path, url) and self._letters_there() != set(missing):
            storage.replace_bytes(Path(path).read_bytes(), url)


def check_uncommitted(
    folder: StageFolder,
    content: bytes,
    metadata: Mapping[str, str],
    expected_ids: Sequence[str] | None,
    decode: bool = True,
) -> list[str]:
    """Check a shard file that has no commit record, and return its record ids in order.

    Args:
        folder: Folder of the stage.
        content: Content of the file.
        metadata: Metadata of the stage.
        expected_ids: Ids of the records that it may hold, in order, if they are known.
        decode: Whether to decode images.

    Raises:
        DamagedFileError: The content is not that of the shard.
    """
    with reading("its content"):
        ids, faults = folder.kind.format.check(content, metadata, decode)
    if expected_ids is not None:
        held = set(ids)
        if ids != [each for each in expected_ids if each in held]:
            faults.append("does not hold the expected records in their order")
    if faults:
        raise DamagedFileError(faults[0])
    return ids


def is_whole(folder: StageFolder, shard: int) -> bool:
    """Read a committed shard and return whether it is what its commit record says."""
    try:
        record = read_commit(folder, shard)
        content = storage.read_bytes(folder.shard_url(shard))
    except (DamagedFileError, MissingFileError):
        return False
    return hashlib.sha256(content).hexdigest() == record.sha256


def discard_shard(folder: StageFolder, shard: int) -> None:
    """Delete a damaged shard and what belongs to it, so that it is made again.

    The commit record is the last to go: until then, the missing file shows that the shard is lost.
    Without a commit record, a damaged file would be taken for that of a worker that died, and be
    adopted.
    """
    for url in (folder.shard_url, folder.failures_url, folder.commit_url):
        storage.delete(url(shard))
