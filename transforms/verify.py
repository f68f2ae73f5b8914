"""Check that the files of a stage agree with its commit records, its index and its captions.

Each shard is read as a whole and compared with everything that is known about it: the checksum and
the counts in its commit record, the record ids that it must hold, and what the format of the stage
(`StageKind.format`) can check: a caption's id is the hash of its text, images decode, and so on.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256

from transforms.core import shards, storage
from transforms.core.dead_letters import failed_ids
from transforms.core.errors import DamagedFileError, MissingFileError, reading
from transforms.core.index import index_table, parse_index, read_success
from transforms.core.shards import CommitRecord, Contents
from transforms.core.stages import StageOutput


@dataclass(frozen=True)
class Problem:
    """Something that is not as it should be.

    Attributes:
        path: The file, relative to the folder of the stage.
        what: What is wrong with it.
        damaged_shard: Shard that has to be made again; None if it is enough to run the stage
            again, or to delete the file.
    """

    path: str
    what: str
    damaged_shard: int | None = None


@dataclass(frozen=True)
class Verification:
    """A stage to check.

    Attributes:
        output: The stage.
        expected_ids: Returns the record ids that a shard must hold, in order, or None if they are
            not known.
        decode: Whether to decode every image.
    """

    output: StageOutput
    expected_ids: Callable[[int], Sequence[str] | None]
    decode: bool


def verify(
    verification: Verification, threads: int, step: Callable[[], object]
) -> Iterator[Problem]:
    """Check a stage: its folders, every committed shard, and its index if it is complete.

    Args:
        verification: The stage, and what is known about it.
        threads: Shards read at once; each is held in memory as a whole.
        step: Called after each shard.
    """
    output = verification.output
    # The commit records are listed last: a shard that is committed meanwhile is not reported.
    kinds = ("shards", "failures", "commits")
    listed = {kind: storage.list_files(storage.join(output.folder.url, kind)) for kind in kinds}
    committed = shards.committed_shards(output.folder)
    yield from _check_names(verification, listed, committed)

    def check(shard: int) -> list[Problem]:
        problems = [Problem(path, what, shard) for path, what in _check_shard(verification, shard)]
        step()
        return problems

    planned = sorted(shard for shard in committed if shard < output.num_shards)
    with ThreadPoolExecutor(threads, "verify") as pool:
        for start in range(0, len(planned), 1000):
            for problems in pool.map(check, planned[start : start + 1000]):
                yield from problems
    if len(planned) < output.num_shards:
        missing = min(set(range(output.num_shards)) - committed)
        number = output.num_shards - len(planned)
        yield Problem("commits", f"{number:,} shards are not committed (first: {missing})")
    else:
        yield from _check_index(output)


def _check_names(
    verification: Verification, listed: Mapping[str, Iterable[str]], committed: set[int]
) -> Iterator[Problem]:
    """Report files with unknown names, and shard files without a commit record."""
    output, folder = verification.output, verification.output.folder
    url_of = {
        "shards": folder.shard_url,
        "failures": folder.failures_url,
        "commits": folder.commit_url,
    }
    for kind, names in listed.items():
        for name in names:
            number = name.rpartition("-")[2].partition(".")[0]
            shard = int(number) if number.isdigit() else -1
            path = f"{kind}/{name}"
            if shard < 0 or url_of[kind](shard) != storage.join(folder.url, path):
                yield Problem(path, "unknown file: no stage writes such a name; delete it")
            elif shard >= output.num_shards:
                yield Problem(path, f"beyond the plan of {output.num_shards} shards; delete it")
            elif shard not in committed and kind == "shards":
                yield _check_orphan(verification, path, shard)


def _check_orphan(verification: Verification, path: str, shard: int) -> Problem:
    orphan = "an orphan: its worker died before it committed the shard"
    try:
        _check_content(
            verification, storage.read_bytes(verification.output.folder.shard_url(shard))
        )
    except DamagedFileError as error:
        return Problem(path, f"{orphan}, and {error}", shard)
    return Problem(path, orphan)


def _check_shard(verification: Verification, shard: int) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with a committed shard: path and sentence."""
    folder = verification.output.folder
    path = folder.shard_path(shard)
    try:
        record = shards.read_commit(folder, shard)
        content = storage.read_bytes(folder.shard_url(shard))
        failed = _failed_ids(verification.output, record)
    except DamagedFileError as error:
        yield path, str(error)
        return
    except MissingFileError:
        yield path, "is missing, although it is committed"
        return
    if record.fingerprint != verification.output.fingerprint.digest:
        yield path, f"was committed with another fingerprint ({record.fingerprint})"
    if len(content) != record.num_bytes:
        yield path, f"has {len(content):,} bytes, but its commit record says {record.num_bytes:,}"
    elif sha256(content).hexdigest() != record.sha256:
        yield path, "has another checksum than its commit record says"
    try:
        ids, faults = _check_content(verification, content)
    except DamagedFileError as error:
        yield path, str(error)
        return
    yield from ((path, fault) for fault in faults)
    if (len(ids), len(failed)) != (record.num_samples, record.num_failures):
        yield (
            path,
            f"holds {len(ids)} samples and {len(failed)} dead letters, but its commit record says "
            f"{record.num_samples} and {record.num_failures}",
        )
    expected = verification.expected_ids(shard)
    if expected is not None and ids != [each for each in expected if each not in failed]:
        yield path, "does not hold the expected records in their order"


def _failed_ids(output: StageOutput, record: CommitRecord) -> set[str]:
    url = output.folder.failures_url(record.shard)
    if record.num_failures == 0 and not storage.exists(url):
        return set()
    try:
        return failed_ids(output.folder, record.shard)
    except MissingFileError as error:
        raise DamagedFileError(f"its dead letters in {url} are missing") from error


def _check_content(verification: Verification, content: bytes) -> Contents:
    """Return the record ids of a shard in order, and what is wrong with its samples.

    Raises:
        DamagedFileError: The content is not that of a shard.
    """
    output = verification.output
    with reading("its content"):
        return output.folder.kind.format.check(content, output.metadata, verification.decode)


def _check_index(output: StageOutput) -> Iterator[Problem]:
    """Check the index of a stage whose shards are all committed."""
    folder = output.folder
    success = read_success(folder)
    if success is None:
        yield Problem("_SUCCESS", "is missing or damaged: the index was not finished")
        return
    try:
        content = storage.read_bytes(folder.index_url)
        table = parse_index(content, folder.index_url).table
    except (MissingFileError, DamagedFileError) as error:
        yield Problem("index.parquet", str(error))
        return
    if sha256(content).hexdigest() != success["index_sha256"]:
        yield Problem("index.parquet", "has another checksum than _SUCCESS says")
    try:
        records = index_table(shards.read_commits(folder, range(output.num_shards)))
    except (DamagedFileError, MissingFileError):
        return  # Reported with its shard.
    if not table.slice(0, output.num_shards).replace_schema_metadata(None).equals(records):
        yield Problem("index.parquet", "does not agree with the commit records")
