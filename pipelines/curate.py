"""Remove duplicate captions, put the rest in random order and cut shards of equal size.

Reads `<run>/captions-raw` and writes exactly `num_captions` to `<run>/captions`, and beside them
`curation.json`: what was removed, and the shares of sources, templates and concepts against the
plan. The order depends on the seed and the captions alone. Takes the file of the captions stage;
what is about the language model has no effect here.

Scratch files, about three times as large as the captions, stand in `<run>/captions/parts` until the
end: a curation that was stopped goes on from there.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipelines.captions import CaptionsConfig, num_raw_shards, prompt_source
from pipelines.options import beam_options
from pipelines.runner import finish, is_complete, plan, progress, run_pipeline, say
from transforms.concepts.balance import Group, balance
from transforms.core import storage
from transforms.core.config import fingerprint_fields
from transforms.core.errors import DamagedFileError, MissingFileError, StorageError, UnfinishedError
from transforms.core.fingerprint import Fingerprint, claim
from transforms.core.shards import Index, StageFolder, read_index
from transforms.core.stages import STAGES, StageOutput, stage_folder, write_plan

if TYPE_CHECKING:
    from transforms.curation.dedup import Deduplication, Summary

CAPTIONS_PER_TASK = 500_000
"""About what one task holds, in half a gigabyte. The number of scratch files is the square of the
number of tasks, so it stays small for large corpora: 150 million captions have 375 tasks."""

CODE_VERSION = 2
"""Counts changes to the order, to which of equal captions is kept, and to what is a duplicate."""

CONFIG = CaptionsConfig


def run(config: CaptionsConfig, flags: Sequence[str]) -> None:
    """Curate what is not curated yet; `flags` are Beam's.

    Raises:
        UnfinishedError: The captions are not complete, or too few are left.
    """
    index, input_id = _read_raw(config)
    curated = stage(config, input_id)
    if _is_done(curated):
        return
    try:
        _curate(config, index, input_id, flags)
    except (UnfinishedError, StorageError, DamagedFileError):
        # Another curation that was ready first takes the scratch files of both away.
        if not _is_done(curated):
            raise


def _is_done(curated: StageOutput) -> bool:
    """Whether the output is complete, and made with these settings; if so, tidy up and say it."""
    if not storage.exists(curated.folder.run_yaml_url):
        return False
    claim(curated.folder.run_yaml_url, curated.fingerprint, curated.config)
    if not is_complete(curated):
        return False
    storage.delete_folder(_scratch(curated.folder))
    say(f"{curated.folder.url} is complete: {curated.num_records:,} captions, nothing to do")
    return True


def _curate(config: CaptionsConfig, index: Index, input_id: str, flags: Sequence[str]) -> None:
    planned = prompt_source(config).plan()  # A wrong list is an error before any work is done.
    folder = stage(config, input_id).folder
    tasks, summary = _drop_duplicates(config, index, input_id, folder, flags)
    num_raw = sum(index.table["num_samples"].to_pylist())
    _check_enough(config, num_raw, sum(summary.num_kept))
    removed = _removed(config, num_raw, summary)
    curated = stage(config, input_id, removed)
    # Only now: a run with too few captions has no output, and may grow its input.
    claim(curated.folder.run_yaml_url, curated.fingerprint, curated.config)
    write_plan(curated)
    counted = _cut(config, curated, tasks, summary, flags)
    report = {**removed, "balance": balance(counted, planned)}
    text = json.dumps(report, indent=1, ensure_ascii=False)
    storage.update_bytes(text.encode("utf-8"), report_url(config.run))
    finish(curated)
    say(
        f"{removed['num_exact_duplicates']:,} equal captions and "
        f"{removed['num_near_duplicates']:,} near duplicates among {num_raw:,} were left out"
    )
    storage.delete_folder(_scratch(curated.folder))


def report_url(run: str) -> str:
    """Where a run's curation says what it removed and how the rest is balanced."""
    return storage.join(run, "captions", "curation.json")


def stage(
    config: CaptionsConfig, input_id: str, removed: dict[str, object] | None = None
) -> StageOutput:
    """The curated captions as an output to make.

    Args:
        config: Of the captions stage.
        input_id: Checksum of the index of what is curated.
        removed: What curation left out, for the index.
    """
    counts = {key: str(value) for key, value in (removed or {}).items() if key.startswith("num_")}
    return StageOutput(
        folder=stage_folder(config.run, "captions"),
        fingerprint=Fingerprint(
            {
                "seed": config.seed,
                "num_captions": config.num_captions,
                "captions_per_shard": config.captions_per_shard,
                "captions_raw_index_sha256": input_id,
                "code_version": CODE_VERSION,
                **fingerprint_fields(config.curation),
            }
        ),
        config=config.model_dump(mode="json"),
        num_shards=config.num_captions // config.captions_per_shard,
        num_records=config.num_captions,
        unit=STAGES["captions"].unit,
        metadata=counts,
    )


def _read_raw(config: CaptionsConfig) -> tuple[Index, str]:
    """The index of the captions to curate, and its checksum."""
    folder = stage_folder(config.run, "captions-raw")
    try:
        checksum = hashlib.sha256(storage.read_bytes(folder.index_url)).hexdigest()
        index = read_index(folder.index_url)
    except MissingFileError as error:
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


def _drop_duplicates(
    config: CaptionsConfig, index: Index, input_id: str, folder: StageFolder, flags: Sequence[str]
) -> "tuple[Deduplication, Summary]":
    """Find what is kept, once for each input and settings."""
    import apache_beam as beam

    from transforms.curation.columns import in_groups, input_shards
    from transforms.curation.dedup import Deduplication, DropDuplicates, read_summary

    num_raw = sum(index.table["num_samples"].to_pylist())
    settings = {
        "input": input_id,
        "seed": config.seed,
        "captions_per_task": CAPTIONS_PER_TASK,
        "code_version": CODE_VERSION,
        **fingerprint_fields(config.curation),
    }
    groups = in_groups(input_shards(index), CAPTIONS_PER_TASK)
    tasks = Deduplication(
        scratch=storage.join(_scratch(folder), Fingerprint(settings).digest),
        num_groups=len(groups),
        num_partitions=max(1, math.ceil(num_raw / CAPTIONS_PER_TASK)),
        seed=config.seed,
        config=config.curation,
    )
    if read_summary(tasks.summary_url) is None:
        say(f"looking for duplicates among {num_raw:,} captions")
        pipeline = beam.Pipeline(options=beam_options(flags))
        created = pipeline | "Groups" >> beam.Create(list(enumerate(groups)))
        _ = created | DropDuplicates(tasks)
        run_pipeline(pipeline, f"{folder.url}: run the same command again to go on")
    summary = read_summary(tasks.summary_url)
    if summary is None:
        raise UnfinishedError(
            f"{tasks.summary_url} was not written: run the same command again to go on"
        )
    return tasks, summary


def _check_enough(config: CaptionsConfig, num_raw: int, num_kept: int) -> None:
    if num_kept >= config.num_captions:
        return
    # A little more than the duplicates seen so far ask for.
    needed = 1.05 * config.oversampling * config.num_captions / max(num_kept, 1)
    raise UnfinishedError(
        f"only {num_kept:,} of {num_raw:,} captions are left after curation, but num_captions "
        f"is {config.num_captions:,}: write more with oversampling={math.ceil(20 * needed) / 20:g} "
        f"(now {config.oversampling:g}) by the captions stage, which keeps those that are there, "
        "then run this command again"
    )


def _cut(
    config: CaptionsConfig,
    curated: StageOutput,
    tasks: "Deduplication",
    summary: "Summary",
    flags: Sequence[str],
) -> list[tuple[Group, int]]:
    """Make the shards that are not there yet; count the captions of each group."""
    import apache_beam as beam

    from transforms.curation.reshard import (
        CountCaptions,
        KeptCaptions,
        ReshardCaptions,
        by_partition,
        read_counts,
    )

    kept = KeptCaptions(tasks, tuple(summary.num_kept))
    counts_url = storage.join(tasks.scratch, "counts.json")
    pending = plan(curated)
    size = config.captions_per_shard
    with progress(curated, len(pending)):
        pipeline = beam.Pipeline(options=beam_options(flags))
        partitions = pipeline | "Partitions" >> beam.Create(range(tasks.num_partitions))
        _ = partitions | CountCaptions(kept, config.num_captions, counts_url)
        shards = pipeline | "Shards" >> beam.Create(by_partition(pending, kept, size))
        _ = shards | ReshardCaptions(kept, curated.folder, curated.fingerprint.digest, size)
        run_pipeline(pipeline, f"{curated.folder.url}: run the same command again to go on")
    return read_counts(counts_url)


def _removed(config: CaptionsConfig, num_raw: int, summary: "Summary") -> dict[str, object]:
    """What curation left out, for `curation.json`."""
    num_distinct, num_kept = sum(summary.num_distinct), sum(summary.num_kept)
    return {
        "num_raw": num_raw,
        "num_exact_duplicates": num_raw - num_distinct,
        "num_near_duplicates": num_distinct - num_kept,
        "num_left_over": num_kept - config.num_captions,
        "settings": fingerprint_fields(config.curation),
        "exact_examples": summary.exact_examples,
        "near_examples": summary.near_examples,
    }


def _scratch(folder: StageFolder) -> str:
    return storage.join(folder.url, "parts")
