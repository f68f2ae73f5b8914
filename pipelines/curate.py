"""Remove duplicate captions, put the rest in random order and write shards of equal size.

With `curation.duplicates=keep` nothing is removed, and equal captions get ids of their own.

Reads `<run>/captions-raw` and writes exactly `num_captions` captions to `<run>/captions`, and with
them `curation.json`: what was removed, and the actual and planned shares of sources, templates and
concepts. The order depends on the seed and the captions only. Reads the same file as the captions
stage; settings of the language model have no effect here.

Scratch files are in `<run>/captions/parts` until the end, about three times as large as the
captions: a curation that was stopped continues from them.
"""

import dataclasses
import json
import logging
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipelines.captions import CaptionsConfig, num_raw_shards, prompt_source
from pipelines.runner import (
    AGAIN,
    check_versions,
    discard,
    finish,
    is_complete,
    lost_shards,
    new_pipeline,
    plan,
    progress,
    run_pipeline,
    say,
)
from transforms.concepts.balance import Group, balance
from transforms.core import storage
from transforms.core.config import fingerprint_fields
from transforms.core.errors import ConfigError, DamagedFileError, StorageError, UnfinishedError
from transforms.core.fingerprint import Fingerprint, claim
from transforms.core.index import examine, stage_metadata
from transforms.core.references import written_fields
from transforms.core.shard_reader import CommittedShards
from transforms.core.shards import StageFolder
from transforms.core.stages import StageOutput, stage_folder, write_plan

if TYPE_CHECKING:
    from transforms.curation.dedup import Deduplication, Summary
    from transforms.curation.reshard import KeptCaptions

log = logging.getLogger(__name__)

CAPTIONS_PER_TASK = 500_000
"""Captions that one task holds in memory, about half a gigabyte. The number of scratch files is the
square of the number of tasks, so that must stay small: 150 million captions need 375 tasks."""

MAX_RESTARTS = 20
"""Times that a curation begins again because scratch files turn out to be damaged."""

CODE_VERSION = 2
"""Version of the code that decides order, duplicates and which of them is kept."""

CONFIG = CaptionsConfig


def run(config: CaptionsConfig, flags: Sequence[str]) -> None:
    """Curate the captions of a run, or complete a curation that was stopped.

    Args:
        config: Settings of the stage.
        flags: Flags for Beam.

    Raises:
        MissingFileError: The captions stage is not complete.
        UnfinishedError: There are too few captions, or too few are left.
    """
    given = config.curation.model_fields_set >= {"duplicates", "near_duplicate_threshold"}
    if config.curation.keeps_all and given and config.curation.near_duplicate_threshold:
        log.warning(
            "key 'curation.near_duplicate_threshold' has no effect with curation.duplicates=keep"
        )
    raw = _read_raw(config)
    curated = stage(config, raw.checksum)
    if _is_done(curated):
        return
    CommittedShards.open_complete(raw.folder)
    try:
        _curate(config, raw, flags)
    except (UnfinishedError, StorageError, DamagedFileError):
        # Another curation that finished first has deleted the scratch files of both.
        if not _is_done(curated):
            raise


def _is_done(curated: StageOutput) -> bool:
    """Return whether the output is complete; if so, tidy it up and tell the user.

    Raises:
        ConfigError: The output was made with other settings.
    """
    if not storage.exists(curated.folder.run_yaml_url):
        return False
    claim(curated.folder.run_yaml_url, curated.fingerprint, curated.config)
    index = examine(curated.folder, curated.num_shards).index
    if index is None:
        return False
    write_plan(dataclasses.replace(curated, metadata=stage_metadata(index)))  # If it is damaged.
    storage.delete_folder(_scratch(curated.folder))
    say(f"{curated.folder.url} is complete: {curated.num_records:,} captions, nothing to do")
    return True


def _curate(config: CaptionsConfig, raw: CommittedShards, flags: Sequence[str]) -> None:
    planned = prompt_source(config).plan()  # Reports a wrong list before any work is done.
    _check_possible(config, len({(source, concept) for source, concept, _ in planned}))
    tasks = _deduplication(config, raw)
    for _ in range(MAX_RESTARTS):
        try:
            curated, removed, counted = _write_shards(config, raw, tasks, flags)
            break
        except UnfinishedError:
            lost = [] if is_complete(stage(config, raw.checksum)) else tasks.discarded()
            if not lost:
                raise
            say(f"damaged scratch files are made again: {', '.join(lost)}")
    else:
        raise UnfinishedError(
            f"files in {tasks.scratch} were damaged {MAX_RESTARTS} times: check the storage, then "
            f"{AGAIN}"
        )
    report = {**removed, "balance": balance(counted, planned)}
    text = json.dumps(report, indent=1, ensure_ascii=False)
    storage.update_bytes(text.encode("utf-8"), report_url(config.run))
    finish(curated)
    say(_result(config, removed))
    storage.delete_folder(_scratch(curated.folder))


def _write_shards(
    config: CaptionsConfig, raw: CommittedShards, tasks: "Deduplication", flags: Sequence[str]
) -> tuple[StageOutput, dict[str, object], list[tuple[Group, int]]]:
    """Commit all shards; return the output, what was removed, and the captions of each group."""
    summary = _drop_duplicates(config, raw, tasks, flags)
    num_raw = raw.num_samples
    kept = _kept(config, tasks, summary, flags)
    _check_enough(config, raw, summary, kept)
    removed = _removed(config, num_raw, summary)
    curated = stage(config, raw.checksum, removed)
    # Not earlier: with too few captions there is no output yet, so that the input may still grow.
    made_with = claim(curated.folder.run_yaml_url, curated.fingerprint, curated.config)
    check_versions(curated, made_with)
    discard(curated.folder, lost_shards(curated.folder, examine(curated.folder)))
    write_plan(curated)
    return curated, removed, _reshard(config, curated, kept, flags)


def report_url(run: str) -> str:
    """Return the address of the report: what was removed and how the rest is balanced."""
    return storage.join(run, "captions", "curation.json")


def stage(
    config: CaptionsConfig, input_id: str, removed: dict[str, object] | None = None
) -> StageOutput:
    """Return the output of the curate stage.

    Args:
        config: Settings of the stage.
        input_id: Checksum of the index of the raw captions.
        removed: What curation removed, for the index.
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
        config=config.written(),
        num_shards=config.num_captions // config.captions_per_shard,
        num_records=config.num_captions,
        metadata=counts,
        libraries=("pyarrow",),
        strict_versions=config.strict_versions,
    )


def _read_raw(config: CaptionsConfig) -> CommittedShards:
    """Return the captions to curate."""
    shards = CommittedShards.open(stage_folder(config.run, "captions-raw"))
    planned = num_raw_shards(config)
    if len(shards) < planned:
        raise UnfinishedError(
            f"{shards.folder.url} has {len(shards)} shards, but the config asks for {planned}: "
            f"run {shards.folder.commands} with the same settings, then this command again"
        )
    return shards


def _deduplication(config: CaptionsConfig, raw: CommittedShards) -> "Deduplication":
    """Return the tasks that find which captions are kept; each input and settings has its own."""
    from transforms.curation.columns import in_groups
    from transforms.curation.dedup import Deduplication
    from transforms.curation.reserve import LATE_SHARE

    settings = {
        "input": raw.checksum,
        "seed": config.seed,
        "captions_per_task": CAPTIONS_PER_TASK,
        "code_version": CODE_VERSION,
        **fingerprint_fields(config.curation),
    }
    folder = stage_folder(config.run, "captions")
    return Deduplication(
        scratch=storage.join(_scratch(folder), Fingerprint(settings).digest),
        num_groups=len(in_groups(raw, CAPTIONS_PER_TASK)),
        num_partitions=max(1, math.ceil(raw.num_samples / CAPTIONS_PER_TASK)),
        seed=config.seed,
        config=config.curation,
        late_from=math.ceil((1 - LATE_SHARE) * len(raw) * config.captions_per_shard),
    )


def _drop_duplicates(
    config: CaptionsConfig, raw: CommittedShards, tasks: "Deduplication", flags: Sequence[str]
) -> "Summary":
    """Find which captions are kept, or read what was found earlier."""
    import apache_beam as beam

    from transforms.curation.columns import in_groups
    from transforms.curation.dedup import DropDuplicates, read_summary

    if read_summary(tasks.summary_url) is None:
        say(f"looking for duplicates among {raw.num_samples:,} captions")
        pipeline = new_pipeline(flags)
        groups = in_groups(raw, CAPTIONS_PER_TASK)
        created = pipeline | "Groups" >> beam.Create(list(enumerate(groups)))
        _ = created | DropDuplicates(tasks)
        run_pipeline(pipeline, f"{stage_folder(config.run, 'captions').url}: {AGAIN}")
    summary = read_summary(tasks.summary_url)
    if summary is None:
        raise UnfinishedError(f"{tasks.summary_url} was not written: {AGAIN}")
    return summary


def _kept(
    config: CaptionsConfig, tasks: "Deduplication", summary: "Summary", flags: Sequence[str]
) -> "KeptCaptions":
    """Return the captions that are kept, within the limit of each concept if there is one."""
    import apache_beam as beam

    from transforms.curation.limit import ConceptLimit, CountConcepts, is_counted
    from transforms.curation.reshard import KeptCaptions

    most = config.curation.captions_per_concept
    if most is None:
        return KeptCaptions(tasks, tuple(summary.num_kept))
    url = storage.join(tasks.scratch, "concepts.json")
    if not is_counted(url):
        pipeline = new_pipeline(flags)
        partitions = pipeline | "Partitions" >> beam.Create(range(tasks.num_partitions))
        _ = partitions | CountConcepts(tasks, url)
        run_pipeline(pipeline, f"{stage_folder(config.run, 'captions').url}: {AGAIN}")
    limit = ConceptLimit(url, most)
    return KeptCaptions(tasks, tuple(limit.num_kept), limit)


def _check_possible(config: CaptionsConfig, num_concepts: int) -> None:
    """Check that the limit of each concept leaves enough captions.

    Args:
        config: Settings of the stage.
        num_concepts: Number of planned concepts, 0 if it is unknown.
    """
    most = config.curation.captions_per_concept
    if most is not None and num_concepts and most * num_concepts < config.num_captions:
        raise ConfigError(
            f"key 'curation.captions_per_concept' has value {most}, so {num_concepts:,} concepts "
            f"have at most {most * num_concepts:,} captions, but num_captions is "
            f"{config.num_captions:,}: expected at least "
            f"{math.ceil(config.num_captions / num_concepts)}"
        )


def _check_enough(
    config: CaptionsConfig, raw: CommittedShards, summary: "Summary", kept: "KeptCaptions"
) -> None:
    """Check that enough captions are left; otherwise say how many more to write.

    Raises:
        UnfinishedError: Too few are left: more captions help, or no number of them would.
    """
    from transforms.curation.reserve import raw_needed

    num_raw, num_kept, limit = raw.num_samples, sum(kept.counts), kept.limit
    if num_kept >= config.num_captions:
        return
    most = math.inf if limit is not None else _most_captions(config, raw, summary)
    if most < config.num_captions:
        raise UnfinishedError(
            f"only {num_kept:,} of {num_raw:,} captions are left after curation, but num_captions "
            f"is {config.num_captions:,}: about {int(most):,} are the most that these settings "
            "give, since the newest captions are hardly ever new; expected a smaller num_captions, "
            "a longer list of concepts, or curation.duplicates=keep, which keeps equal captions"
        )
    if config.captions.variant == "file":
        most = math.inf  # Its captions are read in order, not drawn.
    needed, why = raw_needed(config.num_captions, num_raw, num_kept, most) / max(num_raw, 1), ""
    if limit is not None:
        concept, fewest = limit.fewest()
        needed = 1 / max(min(num_kept / config.num_captions, fewest / limit.most), 1e-9)
        why = f" with at most {limit.most:,} of each concept ({concept!r} has {fewest:,})"
    needed *= 1.05 * config.captions.oversampling  # Slightly more than necessary.
    raise UnfinishedError(
        f"only {num_kept:,} of {num_raw:,} captions are left after curation{why}, but num_captions "
        f"is {config.num_captions:,}: run `python -m pipelines captions` with "
        f"captions.oversampling={math.ceil(20 * needed) / 20:g} (now "
        f"{config.captions.oversampling:g}), which adds to the existing captions, then this "
        "command again"
    )


def _most_captions(config: CaptionsConfig, raw: CommittedShards, summary: "Summary") -> float:
    """Return how many captions could be left at most, with any number of written ones."""
    from transforms.curation.reserve import all_can_come, most_captions

    if config.curation.keeps_all:
        return math.inf
    known = prompt_source(config).most_captions()
    if config.captions.variant == "file" and known is not None:
        unread = max(0, known // config.captions_per_shard - len(raw))
        return sum(summary.num_kept) + unread * config.captions_per_shard
    guess = most_captions(raw.num_samples, summary)
    if known is None:
        return guess
    may_come = all_can_come(raw.num_samples, summary, known)
    is_exact = may_come and not config.curation.finds_near_duplicates
    return known if is_exact else min(known, guess)


def _reshard(
    config: CaptionsConfig, curated: StageOutput, kept: "KeptCaptions", flags: Sequence[str]
) -> list[tuple[Group, int]]:
    """Write the missing shards; return the number of captions of each group."""
    import apache_beam as beam

    from transforms.curation.reshard import (
        CountCaptions,
        ReshardCaptions,
        by_partition,
        read_counts,
    )

    tasks = kept.deduplication
    counts_url = storage.join(tasks.scratch, "counts.json")
    pending = plan(curated)
    size = config.captions_per_shard
    with progress(curated, len(pending)):
        pipeline = new_pipeline(flags)
        partitions = pipeline | "Partitions" >> beam.Create(range(tasks.num_partitions))
        _ = partitions | CountCaptions(kept, config.num_captions, counts_url)
        shards = pipeline | "Shards" >> beam.Create(by_partition(pending, kept, size))
        _ = shards | ReshardCaptions(kept, curated.folder, curated.fingerprint.digest, size)
        run_pipeline(pipeline, f"{curated.folder.url}: {AGAIN}")
    return read_counts(counts_url)


def _result(config: CaptionsConfig, removed: dict[str, object]) -> str:
    """Return what curation did, as a sentence."""
    if config.curation.keeps_all:
        repeated = f"{removed['num_repeated']:,} of them have the text of an earlier one"
        return f"all of {removed['num_raw']:,} captions were kept; {repeated}"
    return (
        f"{removed['num_exact_duplicates']:,} equal captions and "
        f"{removed['num_near_duplicates']:,} near duplicates of {removed['num_raw']:,} were removed"
    )


def _removed(config: CaptionsConfig, num_raw: int, summary: "Summary") -> dict[str, object]:
    """Return what curation removed, for `curation.json`."""
    num_distinct, num_kept = sum(summary.num_distinct), sum(summary.num_kept)
    return {
        "num_raw": num_raw,
        "num_exact_duplicates": num_raw - num_distinct,
        "num_near_duplicates": num_distinct - num_kept,
        "num_left_over": num_kept - config.num_captions,
        **({"num_repeated": sum(summary.num_repeated)} if config.curation.keeps_all else {}),
        "settings": written_fields(fingerprint_fields(config.curation), config.written()),
        "exact_examples": summary.exact_examples,
        "near_examples": summary.near_examples,
    }


def _scratch(folder: StageFolder) -> str:
    return storage.join(folder.url, "parts")
