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
from transforms.core.commit import check_uncommitted
from transforms.core.dead_letters import failed_ids
from transforms.core.errors import DamagedFileError, MissingFileError, reading
from transforms.core.index import parse_index, read_success, rows_and_numbers, stage_metadata
from transforms.core.shards import CommitRecord
from transforms.core.stages import StageOutput


@dataclass(frozen=True)
class Problem:
    """Something that is not as it should be.

    Attributes:
        path: The file, relative to the folder of the stage.
        what: What is wrong with it.
        damaged_shard: Shard that has to be committed again; None if no committed shard is damaged.
        spoilt: Files to delete before the command of the stage can make what they hold again,
            relative to the folder of the stage. Without a damaged shard: those of the index.
        unfinished: True if it is enough to run the command of the stage again.
        by_hand: True if `what` says what to do.
    """

    path: str
    what: str
    damaged_shard: int | None = None
    spoilt: tuple[str, ...] = ()
    unfinished: bool = False
    by_hand: bool = False


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
    if _has_wrong_plan(output):
        # By such a plan, whole shards would be damaged, or beyond it.
        what = f"does not agree with the index: run {output.folder.commands} to write it again"
        yield Problem("plan.json", what, by_hand=True)
        return
    # The commit records are listed last: a shard that is committed meanwhile is not reported.
    kinds = ("shards", "failures", "commits")
    listed = {kind: storage.list_files(storage.join(output.folder.url, kind)) for kind in kinds}
    committed = shards.committed_shards(output.folder)
    expected = _ExpectedIds(verification.expected_ids)
    checks = _Checks(output, expected, verification.decode)
    yield from _check_names(checks, listed, committed)

    def check(shard: int) -> list[Problem]:
        problems = list(checks.shard(shard))
        step()
        return problems

    planned = sorted(shard for shard in committed if shard < output.num_shards)
    with ThreadPoolExecutor(threads, "verify") as pool:
        for start in range(0, len(planned), 1000):
            for problems in pool.map(check, planned[start : start + 1000]):
                yield from problems
    for fault in expected.faults:
        what = f"cannot be compared with what they were made of: {fault.partition(';')[0]}"
        if output.folder.is_retry:
            # Its captions are in its folder, and belong to no stage.
            what = f"{what}; run {output.folder.commands} to write it again"
        yield Problem("shards", what, by_hand=output.folder.is_retry)
    if len(planned) < output.num_shards:
        missing = min(set(range(output.num_shards)) - committed)
        number = output.num_shards - len(planned)
        what = f"{number:,} shards are not committed (first: {missing})"
        yield Problem("commits", what, unfinished=True)
    else:
        yield from _check_index(output)


def _has_wrong_plan(output: StageOutput) -> bool:
    """Return whether `plan.json` contradicts an index that is whole. A stage may have grown."""
    folder = output.folder
    success = read_success(folder)
    if success is None:
        return False
    try:
        content = storage.read_bytes(folder.index_url)
        index = parse_index(content, folder.index_url, success["index_sha256"])
    except (MissingFileError, DamagedFileError):
        return False
    num_shards = success["num_shards"]
    if any(output.metadata.get(key) != value for key, value in stage_metadata(index).items()):
        return True
    if output.num_shards != num_shards:
        return output.num_shards < num_shards
    own = index.table.slice(0, num_shards)  # Those of retries follow.
    num_records = sum(sum(own[name].to_pylist()) for name in ("num_samples", "num_failures"))
    return num_records != output.num_records and num_records == _num_made(output)


def _num_made(output: StageOutput) -> int | None:
    """Return the number of samples and failures in the commit records; None if one is damaged."""
    try:
        records = shards.read_commits(output.folder, range(output.num_shards))
        return sum(record.num_samples + record.num_failures for record in records)
    except (MissingFileError, DamagedFileError):
        return None


class _ExpectedIds:
    """The record ids that shards must hold; notes why they are not known."""

    def __init__(self, ids: Callable[[int], Sequence[str] | None]) -> None:
        self._ids = ids
        self.faults: dict[str, None] = {}

    def __call__(self, shard: int) -> Sequence[str] | None:
        try:
            return self._ids(shard)
        except (DamagedFileError, MissingFileError) as error:
            self.faults[str(error)] = None
            return None


def _check_names(
    checks: "_Checks", listed: Mapping[str, Iterable[str]], committed: set[int]
) -> Iterator[Problem]:
    """Report files with unknown names, and shard files without a commit record."""
    output, folder = checks.output, checks.output.folder
    url_of = {
        "shards": folder.shard_url,
        "failures": folder.failures_url,
        "commits": folder.commit_url,
    }
    for kind, names in listed.items():
        for name in names:
            number = name.rpartition("-")[2].partition(".")[0]
            shard = int(number) if number.isdecimal() else -1
            path = f"{kind}/{name}"
            if shard < 0 or url_of[kind](shard) != storage.join(folder.url, path):
                what = "unknown file: no stage writes such a name; delete it"
                yield Problem(path, what, by_hand=True)
            elif shard >= output.num_shards:
                what = f"beyond the plan of {output.num_shards} shards; delete it"
                yield Problem(path, what, by_hand=True)
            elif shard not in committed and kind == "shards":
                yield checks.orphan(path, shard)


@dataclass(frozen=True)
class _Checks:
    """The checks of single shards of a stage."""

    output: StageOutput
    expected_ids: _ExpectedIds
    decode: bool

    def orphan(self, path: str, shard: int) -> Problem:
        """Check a shard file without a commit record as the worker does that will adopt it."""
        orphan = "an orphan: its worker died before it committed the shard"
        try:
            content = storage.read_bytes(self.output.folder.shard_url(shard))
            self._ids(shard, content)
        except DamagedFileError as error:
            return Problem(path, f"{orphan}, and {error}", shard, self._files(shard)[:2])
        return Problem(path, orphan, unfinished=True)

    def shard(self, shard: int) -> Iterator[Problem]:
        """Yield what is wrong with a committed shard."""
        folder = self.output.folder
        path, letters, commit = files = self._files(shard)
        record = None
        try:
            record = shards.read_commit(folder, shard)
        except DamagedFileError as error:
            # The file may be whole: it is adopted then.
            yield Problem(commit, str(error), shard, (commit,))
        except MissingFileError:
            yield Problem(commit, "was deleted meanwhile", shard, (commit,))
        try:
            content = storage.read_bytes(folder.shard_url(shard))
        except MissingFileError:
            yield Problem(path, "is missing, although it is committed", shard, files)
            return
        if record is None:
            try:
                self._ids(shard, content)
            except DamagedFileError as error:
                yield Problem(path, str(error), shard, files)
            return
        faults = list(self._record_faults(record, content))
        yield from (Problem(path, fault, shard, files) for fault in faults)
        try:
            failed = self._failed_ids(record)
        except DamagedFileError as error:
            # The shard is adopted, and its records that failed are made again, for their reasons.
            yield Problem(path, str(error), shard, (letters, commit))
            return
        # If the file is what was committed, its dead letters are what is wrong.
        spoilt = files if faults else (letters, commit)
        for fault, by_content in self._content_faults(record, content, failed):
            yield Problem(path, fault, shard, files if by_content else spoilt)

    def _files(self, shard: int) -> tuple[str, str, str]:
        """Return shard, dead letters and commit record, in the order in which they are deleted."""
        folder = self.output.folder
        urls = (folder.shard_url(shard), folder.failures_url(shard), folder.commit_url(shard))
        path, letters, commit = (url.removeprefix(f"{folder.url.rstrip('/')}/") for url in urls)
        return path, letters, commit

    def _ids(self, shard: int, content: bytes) -> list[str]:
        """Return the record ids of a file that has no commit record.

        Raises:
            DamagedFileError: The content is not that of the shard.
        """
        output = self.output
        expected = self.expected_ids(shard)
        return check_uncommitted(output.folder, content, output.metadata, expected, self.decode)

    def _record_faults(self, record: CommitRecord, content: bytes) -> Iterator[str]:
        """Yield how a file differs from its commit record."""
        if record.fingerprint != self.output.fingerprint.digest:
            yield f"was committed with another fingerprint ({record.fingerprint})"
        if len(content) != record.num_bytes:
            says = f"its commit record says {record.num_bytes:,}"
            yield f"has {len(content):,} bytes, but {says}"
        elif sha256(content).hexdigest() != record.sha256:
            yield "has another checksum than its commit record says"

    def _content_faults(
        self, record: CommitRecord, content: bytes, failed: set[str]
    ) -> Iterator[tuple[str, bool]]:
        """Yield what is wrong with the samples, and whether the shard file itself is wrong."""
        output = self.output
        try:
            with reading("its content"):
                ids, faults = output.folder.kind.format.check(content, output.metadata, self.decode)
        except DamagedFileError as error:
            yield str(error), True
            return
        yield from ((fault, True) for fault in faults)
        if (len(ids), len(failed)) != (record.num_samples, record.num_failures):
            holds = f"holds {len(ids)} samples and {len(failed)} dead letters"
            says = f"its commit record says {record.num_samples} and {record.num_failures}"
            yield f"{holds}, but {says}", len(ids) != record.num_samples
        expected = self.expected_ids(record.shard)
        if expected is not None and ids != [each for each in expected if each not in failed]:
            held = set(ids)
            in_order = ids == [each for each in expected if each in held]
            yield "does not hold the expected records in their order", not in_order

    def _failed_ids(self, record: CommitRecord) -> set[str]:
        url = self.output.folder.failures_url(record.shard)
        if record.num_failures == 0 and not storage.exists(url):
            return set()
        try:
            return failed_ids(self.output.folder, record.shard)
        except MissingFileError as error:
            raise DamagedFileError(f"its dead letters in {url} are missing") from error


def _check_index(output: StageOutput) -> Iterator[Problem]:
    """Check the index of a stage whose shards are all committed."""
    folder = output.folder
    spoilt = ("_SUCCESS", "index.parquet")
    success = read_success(folder)
    if success is None:
        what = "is missing or damaged: the index was not finished"
        yield Problem("_SUCCESS", what, spoilt=spoilt)
        return
    try:
        content = storage.read_bytes(folder.index_url)
        table = parse_index(content, folder.index_url).table
    except (MissingFileError, DamagedFileError) as error:
        yield Problem("index.parquet", str(error), spoilt=spoilt)
        return
    if sha256(content).hexdigest() != success["index_sha256"]:
        yield Problem("index.parquet", "has another checksum than _SUCCESS says", spoilt=spoilt)
    try:
        records = shards.read_commits(folder, range(output.num_shards))
        rows, numbers = rows_and_numbers(folder, records)
    except (DamagedFileError, MissingFileError):
        return  # Reported with its shard, or with its retry.
    if not table.replace_schema_metadata(None).equals(rows):
        what = "does not agree with the commit records"
        yield Problem("index.parquet", what, spoilt=spoilt)
    elif any(success.get(name, number) != number for name, number in numbers.items()) or (
        success.keys() - numbers.keys() - {"index_sha256"}  # The name of a number is damaged.
    ):
        yield Problem("_SUCCESS", "has other numbers than the index", spoilt=spoilt)
