"""Remove duplicate captions, put the rest in random order and cut shards of equal size.

Reads `<run>/captions-raw` and writes exactly `num_captions` to `<run>/captions`. The order depends
on the seed and the captions alone. Takes the file of the captions stage; what is about writing
captions has no effect here.
"""

import hashlib
import math
from collections.abc import Sequence

from pipelines.captions import CaptionsConfig, num_raw_shards, raw_folder
from pipelines.options import beam_options
from pipelines.stage import UnfinishedError, finish, is_complete, plan, progress, run_pipeline, say
from transforms.core import storage
from transforms.core.fingerprint import Fingerprint, claim
from transforms.core.shards import Index, StageFolder, read_index
from transforms.core.stage import StageOutput

CAPTIONS_PER_PARTITION = 50_000
"""About what one worker sorts at a time: some 30 MB of text."""

CODE_VERSION = 1
"""Counts changes to the order, or to which of two equal captions is kept."""

CONFIG = CaptionsConfig


def run(config: CaptionsConfig, flags: Sequence[str]) -> None:
    """Curate what is not curated yet; `flags` are Beam's.

    Raises:
        UnfinishedError: The captions are not complete, or too few are left.
    """
    index, input_id = _read_raw(config)
    curated = stage(config, input_id)
    if storage.exists(curated.folder.run_yaml_url):
        claim(curated.folder.run_yaml_url, curated.fingerprint, curated.config)
        if is_complete(curated):
            say(
                f"{curated.folder.url} is complete: {curated.num_records:,} captions, nothing to do"
            )
            return
    counts = _count_distinct(config, index, input_id, curated.folder, flags)
    num_raw = sum(index.table["num_samples"].to_pylist())
    _check_enough(config, num_raw, sum(counts))
    # Only now: a run with too few captions has no output, and may grow its input.
    claim(curated.folder.run_yaml_url, curated.fingerprint, curated.config)
    _make_shards(config, index, curated, counts, flags)
    say(f"{num_raw - sum(counts):,} duplicates among {num_raw:,} captions were left out")
    finish(stage(config, input_id, num_raw, sum(counts)))


def stage(
    config: CaptionsConfig, input_id: str, num_raw: int = 0, num_distinct: int = 0
) -> StageOutput:
    """The curated captions as an output to make.

    Args:
        config: Of the captions stage.
        input_id: Checksum of the index of what is curated.
        num_raw: Captions before curation, for the index.
        num_distinct: Different captions among them, for the index.
    """
    return StageOutput(
        folder=StageFolder(storage.join(config.run, "captions"), "captions", ".parquet"),
        fingerprint=Fingerprint(
            {
                "seed": config.seed,
                "num_captions": config.num_captions,
                "captions_per_shard": config.captions_per_shard,
                "captions_raw_index_sha256": input_id,
                "code_version": CODE_VERSION,
            }
        ),
        config=config.model_dump(mode="json"),
        num_shards=config.num_captions // config.captions_per_shard,
        num_records=config.num_captions,
        unit="captions",
        metadata={"num_raw": str(num_raw), "num_duplicates": str(num_raw - num_distinct)},
    )


def _read_raw(config: CaptionsConfig) -> tuple[Index, str]:
    """The index of the captions to curate, and its checksum."""
    folder = raw_folder(config.run)
    try:
        checksum = hashlib.sha256(storage.read_bytes(folder.index_url)).hexdigest()
        index = read_index(folder.index_url)
    except storage.MissingFileError as error:
        raise UnfinishedError(
            f"{folder.url} is not complete (no index.parquet): run the captions stage to its end, "
            "then this command again"
        ) from error
    planned = num_raw_shards(config)
    if index.table.num_rows < planned:
        raise UnfinishedError(
            f"{folder.url} has {index.table.num_rows} shards, but the config asks for {planned}: "
            "run the captions stage again, then this command"
        )
    return index, checksum


def _count_distinct(
    config: CaptionsConfig, index: Index, input_id: str, folder: StageFolder, flags: Sequence[str]
) -> list[int]:
    """Distinct captions of each partition, counted once and kept beside the output."""
    import apache_beam as beam

    from transforms.dedup import CountDistinct, input_shards, read_counts

    url = storage.join(folder.url, "partitions.json")
    num_raw = sum(index.table["num_samples"].to_pylist())
    num_partitions = max(1, math.ceil(num_raw / CAPTIONS_PER_PARTITION))
    input_id = f"{input_id} seed {config.seed} partitions {num_partitions}"
    counts = read_counts(url, input_id)
    if counts is None:
        pipeline = beam.Pipeline(options=beam_options(flags))
        shards = pipeline | "Shards" >> beam.Create(input_shards(index))
        _ = shards | CountDistinct(config.seed, num_partitions, url, input_id)
        run_pipeline(pipeline, f"{folder.url}: run the same command again to go on")
        counts = read_counts(url, input_id)
    if counts is None:
        raise UnfinishedError(f"{url} was not written: run the same command again to go on")
    return counts


def _check_enough(config: CaptionsConfig, num_raw: int, num_distinct: int) -> None:
    if num_distinct >= config.num_captions:
        return
    # A little more than the duplicates seen so far ask for.
    needed = 1.05 * config.oversampling * config.num_captions / max(num_distinct, 1)
    raise UnfinishedError(
        f"only {num_distinct:,} of {num_raw:,} captions are left after curation, but num_captions "
        f"is {config.num_captions:,}: write more with oversampling={math.ceil(20 * needed) / 20:g} "
        f"(now {config.oversampling:g}) by the captions stage, which keeps those that are there, "
        "then run this command again"
    )


def _make_shards(
    config: CaptionsConfig,
    index: Index,
    curated: StageOutput,
    counts: Sequence[int],
    flags: Sequence[str],
) -> None:
    import apache_beam as beam

    from transforms.dedup import CurateShards, input_shards

    pending = plan(curated)
    if not pending:
        return
    curate = CurateShards(
        curated.folder,
        curated.fingerprint.digest,
        config.seed,
        counts,
        config.captions_per_shard,
        pending,
    )
    with progress(curated, len(pending)):
        pipeline = beam.Pipeline(options=beam_options(flags))
        _ = pipeline | "Shards" >> beam.Create(input_shards(index)) | curate
        run_pipeline(pipeline, f"{curated.folder.url}: run the same command again to go on")
