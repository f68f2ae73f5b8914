"""Whether the files of a stage are what its commit records, its index and its captions say.

A shard is read as a whole and checked against everything that is known of it: the checksum and
the counts of its commit record, the records that it owes, and its own content: a caption's id is
the hash of its text, an image set is named by its caption's id, its seeds derive from it, and its
images decode.
"""

import io
import json
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import pyarrow.parquet as pq

from transforms.core import parquet_shards, shards, storage, tar_shards
from transforms.core.dead_letters import failed_ids
from transforms.core.errors import DAMAGE, DamagedFileError, MissingFileError, reading
from transforms.core.records import CAPTION_SCHEMA
from transforms.core.seeding import caption_id, derive
from transforms.core.shards import CommitRecord
from transforms.core.stages import StageOutput

MAX_ATTEMPTS = 100
"""Images are painted again a few times at most; a seed beyond this is not one of theirs."""


@dataclass(frozen=True)
class Problem:
    """Something that is not as it should be.

    Attributes:
        path: The file, relative to the stage's folder.
        what: What is wrong with it.
        remake: The shard that has to be made again to mend it; None if running the stage again,
            or deleting what it names, is enough.
    """

    path: str
    what: str
    remake: int | None = None


@dataclass(frozen=True)
class Expected:
    """What is known of an output beside its own files.

    Attributes:
        output: The stage.
        owed: The ids of the records of a shard, in order, or None where nobody knows.
        decode: Whether to decode every image.
    """

    output: StageOutput
    owed: Callable[[int], Sequence[str] | None]
    decode: bool


def verify(expected: Expected, threads: int, step: Callable[[], object]) -> Iterator[Problem]:
    """Check a stage: its folders, every committed shard, and its index if it is complete.

    Args:
        expected: The stage.
        threads: Shards read at once; each is held in memory as a whole.
        step: Called after each shard.
    """
    output = expected.output
    # The commit records come last: what is committed meanwhile is no orphan.
    kinds = ("shards", "failures", "commits")
    listed = {kind: storage.list_files(storage.join(output.folder.url, kind)) for kind in kinds}
    committed = shards.committed_shards(output.folder)
    yield from _check_names(expected, listed, committed)

    def check(shard: int) -> list[Problem]:
        problems = [Problem(path, what, shard) for path, what in _check_shard(expected, shard)]
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
    expected: Expected, listed: Mapping[str, Iterable[str]], committed: set[int]
) -> Iterator[Problem]:
    """Files that are nobody's, and shard files that nobody committed."""
    output, folder = expected.output, expected.output.folder
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
                yield Problem(path, "a stranger: no stage writes such a name; delete it")
            elif shard >= output.num_shards:
                yield Problem(path, f"beyond the plan of {output.num_shards} shards; delete it")
            elif shard not in committed and kind == "shards":
                yield _check_orphan(expected, path, shard)


def _check_orphan(expected: Expected, path: str, shard: int) -> Problem:
    orphan = "an orphan: its worker died before it committed the shard"
    try:
        _read(expected, storage.read_bytes(expected.output.folder.shard_url(shard)))
    except DamagedFileError as error:
        return Problem(path, f"{orphan}, and {error}", shard)
    return Problem(path, orphan)


def _check_shard(expected: Expected, shard: int) -> Iterator[tuple[str, str]]:
    """What is wrong with a committed shard: path and sentence."""
    folder = expected.output.folder
    path = folder.shard_path(shard)
    try:
        record = shards.read_commit(folder, shard)
        content = storage.read_bytes(folder.shard_url(shard))
        failed = _failed_ids(expected.output, record)
    except DamagedFileError as error:
        yield path, str(error)
        return
    except MissingFileError:
        yield path, "is missing, although it is committed"
        return
    if record.fingerprint != expected.output.fingerprint.digest:
        yield path, f"was committed with another fingerprint ({record.fingerprint})"
    if len(content) != record.num_bytes:
        yield path, f"has {len(content):,} bytes, but its commit record says {record.num_bytes:,}"
    elif sha256(content).hexdigest() != record.sha256:
        yield path, "has another checksum than its commit record says"
    try:
        ids, faults = _read(expected, content)
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
    owed = expected.owed(shard)
    if owed is not None and ids != [owed_id for owed_id in owed if owed_id not in failed]:
        yield path, "does not hold the records that it owes, in their order"


def _failed_ids(output: StageOutput, record: CommitRecord) -> set[str]:
    url = output.folder.failures_url(record.shard)
    if record.num_failures == 0 and not storage.exists(url):
        return set()
    try:
        return failed_ids(url)
    except MissingFileError as error:
        raise DamagedFileError(f"its dead letters in {url} are missing") from error


def _read(expected: Expected, content: bytes) -> tuple[list[str], list[str]]:
    """The record ids of a shard in order, and what is wrong with its samples.

    Raises:
        DamagedFileError: The content is not that of a shard.
    """
    folder = expected.output.folder
    with reading("its content"):
        if folder.suffix == ".tar":
            return _read_images(expected, content)
        if folder.name == "captions":
            return _read_captions(content)
        return [row.record_id for row in parquet_shards.read_backgrounds(io.BytesIO(content))], []


def _read_captions(content: bytes) -> tuple[list[str], list[str]]:
    table = pq.read_table(io.BytesIO(content))
    if not table.select(CAPTION_SCHEMA.names).schema.equals(CAPTION_SCHEMA):
        return [], ["has other columns than a shard of captions"]
    pairs = zip(table["caption_id"].to_pylist(), table["text"].to_pylist(), strict=True)
    wrong = sum(caption_id(text) != found for found, text in pairs)
    ids = [str(ordinal) for ordinal in table["ordinal"].to_pylist()]
    faults = [f"has {wrong} captions whose id is not the hash of their text"] if wrong else []
    if len(set(ids)) < len(ids):
        faults.append("holds an ordinal twice")
    return ids, faults


def _read_images(expected: Expected, content: bytes) -> tuple[list[str], list[str]]:
    samples: dict[str, dict[str, bytes]] = {}
    tar_shards.check_end(io.BytesIO(content))
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
        for member in archive:
            key, _, extension = member.name.partition(".")
            file = archive.extractfile(member)
            samples.setdefault(key, {})[extension] = file.read() if file else b""
    faults = [
        f"{key}: {fault}"
        for key, sample in samples.items()
        for fault in _check_sample(expected, key, sample)
    ]
    return list(samples), faults


def _check_sample(expected: Expected, key: str, sample: dict[str, bytes]) -> Iterator[str]:
    described: Any = json.loads(sample.get("json", b"{}"))
    if not isinstance(described, dict):
        raise ValueError(f"the JSON of {key} is no object")
    text = sample.get("txt", b"").decode("utf-8", errors="replace")
    if caption_id(text) != key:
        yield "its text is another caption's"
    if (described.get("caption_id"), described.get("text")) != (key, text):
        yield "its JSON is about another caption"
    metadata = expected.output.metadata
    names = sorted((n for n in sample if n[0].isdigit()), key=lambda n: int(n.partition(".")[0]))
    numbers = [int(name.partition(".")[0]) for name in names]
    if numbers != list(range(int(metadata.get("images_per_caption", len(names))))):
        yield f"it has the images {numbers}"
    seeds = described.get("seeds", [])
    digest = metadata.get("generator_digest")
    if len(seeds) != len(names) or (digest and not _are_ours(digest, key, seeds)):
        yield "its seeds are not those of its caption"
    if expected.decode:
        yield from (f"image {name} does not decode" for name in names if not _decodes(sample[name]))


def _are_ours(generator_digest: str, key: str, seeds: Sequence[int]) -> bool:
    return all(
        any(seed == derive(generator_digest, key, number, n) for n in range(MAX_ATTEMPTS))
        for number, seed in enumerate(seeds)
    )


def _decodes(image: bytes) -> bool:
    from PIL import Image

    damage = (*DAMAGE, SyntaxError, struct.error, zlib.error, Image.DecompressionBombError)
    try:
        Image.open(io.BytesIO(image)).load()
    except damage:
        return False
    return True


def _check_index(output: StageOutput) -> Iterator[Problem]:
    """The index of a stage whose shards are all committed."""
    folder = output.folder
    success = shards.read_success(folder)
    if success is None:
        yield Problem("_SUCCESS", "is missing or damaged: the index was not finished")
        return
    try:
        content = storage.read_bytes(folder.index_url)
        table = shards.read_index(folder.index_url).table
    except (MissingFileError, DamagedFileError) as error:
        yield Problem("index.parquet", str(error))
        return
    if sha256(content).hexdigest() != success["index_sha256"]:
        yield Problem("index.parquet", "has another checksum than _SUCCESS says")
    try:
        records = shards.index_table(shards.read_commits(folder, range(output.num_shards)))
    except (DamagedFileError, MissingFileError):
        return  # Reported with its shard.
    if not table.slice(0, output.num_shards).replace_schema_metadata(None).equals(records):
        yield Problem("index.parquet", "says other things than the commit records")
