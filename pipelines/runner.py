"""Run a stage: claim the folder, plan, drop the committed shards, produce the others, index.

The launching process counts commit records against the plan, so the progress bar is the same on a
laptop, on Flink and on Dataflow.
"""

import contextlib
import os
import random
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from pipelines.options import beam_options
from transforms.core import shards, storage
from transforms.core.commit import discard_shard, is_whole
from transforms.core.errors import (
    ConfigError,
    DamagedFileError,
    MissingFileError,
    StorageError,
    UnfinishedError,
)
from transforms.core.fingerprint import accept_versions, claim
from transforms.core.index import (
    StageFiles,
    StageState,
    complete_retries,
    examine,
    index_metadata,
    list_stage,
    write_index,
)
from transforms.core.processes import end_children_with_this_process
from transforms.core.progress import bar
from transforms.core.references import redacted
from transforms.core.scratch import temporary_folder, write_details
from transforms.core.shards import CommitRecord, StageFolder
from transforms.core.stages import Stage, StageOutput, write_plan

if TYPE_CHECKING:
    from apache_beam import Pipeline

POLL_INTERVAL_S = 1.0
AGAIN = "run the same command again to continue"
_RECORDS_READ = 20
"""Commit records read of a folder that lost its `run.yaml`; several, as some may be damaged."""


def run_stage(
    stage: Stage, beam_flags: Sequence[str], prepare: Callable[[], object] | None = None
) -> None:
    """Make every shard of a stage that is not committed yet, then the index and `_SUCCESS`.

    Args:
        stage: The stage.
        beam_flags: Beam's flags, as `options.split_flags` returns them.
        prepare: Called before anything is written if there are shards to make: it checks the device
            or the input, for instance.

    Raises:
        ConfigError: The folder was made with other settings, or with other library versions and
            `strict_versions`, or holds more than the plan.
        UnfinishedError: Some shards could not be made; committed shards are kept.
    """
    if beam_flags:
        beam_options(beam_flags)  # A wrong flag is an error before anything is written.
    state = examine(stage.folder, stage.num_shards)
    if prepare is not None and (_unmade(stage, state.files) or state.doubtful):
        prepare()
    _check_lost_settings(stage, state)
    made_with = claim(stage.folder.run_yaml_url, stage.fingerprint, stage.config)
    unmade = plan(stage, state.files)
    if state.summary is not None:
        write_plan(stage)  # A larger plan may have been given up before its first shard.
        made = state.summary["num_samples"]
        say(f"{stage.folder.url} is complete: {made:,} {stage.unit}, nothing to do")
        return
    lost = lost_shards(stage.folder, state)
    _check_replacement(stage, state.files, unmade, lost)
    pending = sorted({*unmade, *lost})
    if pending:
        check_versions(stage, made_with)
    discard(stage.folder, lost)
    write_plan(stage)
    if pending:
        # In random order, two launchers on one output seldom work on the same shard.
        random.SystemRandom().shuffle(pending)
        with progress(stage, len(pending)):
            _produce(stage, pending, beam_flags)
    finish(stage)


def _check_lost_settings(stage: StageOutput, state: StageState) -> None:
    """Refuse to give a folder that lost its `run.yaml` one with other settings.

    The index or a commit record of the folder says which fingerprint it was made with.
    """
    if storage.exists(stage.folder.run_yaml_url):
        return
    made = {state.index.metadata.get("fingerprint", "")} if state.index else set()
    for shard in sorted(state.files.committed)[:_RECORDS_READ]:
        with contextlib.suppress(DamagedFileError, MissingFileError):
            made.add(shards.read_commit(stage.folder, shard).fingerprint)
    if made - {""} and stage.fingerprint.digest not in made:
        raise ConfigError(
            f"{stage.folder.url} was made with other settings, and its run.yaml, which says which, "
            "is lost: restore the settings, or choose another `run`"
        )


def check_versions(stage: StageOutput, made_with: Mapping[str, str]) -> None:
    """Compare the versions that `claim` has returned; see `accept_versions`."""
    url = stage.folder.run_yaml_url
    accept_versions(made_with, url, stage.libraries, stage.strict_versions)


def is_complete(stage: StageOutput) -> bool:
    """Return whether the stage is complete, as `index.examine` finds."""
    return examine(stage.folder, stage.num_shards).fault is None


def plan(stage: StageOutput, files: StageFiles | None = None) -> list[int]:
    """Return the shards that are not committed yet or whose file is gone, in order.

    Args:
        stage: The stage.
        files: Its files, if they are listed already.

    Raises:
        ConfigError: The folder holds more shards than the plan.
    """
    files = files or list_stage(stage.folder)
    beyond = [shard for shard in files.committed if shard >= stage.num_shards]
    if beyond:
        raise ConfigError(
            f"{stage.folder.url} holds shard {max(beyond)}, but the config plans only "
            f"{stage.num_shards} shards: ask for at least as many as there are, or choose "
            "another `run`"
        )
    return _unmade(stage, files)


def _unmade(stage: StageOutput, files: StageFiles) -> list[int]:
    return [
        shard
        for shard in range(stage.num_shards)
        if shard not in files.committed or files.size(stage.folder.shard_path(shard)) is None
    ]


def lost_shards(folder: StageFolder, state: StageState) -> list[int]:
    """Return the committed shards whose file is gone or cut off, in order.

    Each one is read: another process may have made it again since the listing, and the index may be
    wrong about it.
    """
    suspects = sorted({*state.lost, *state.doubtful})
    return [shard for shard in suspects if not is_whole(folder, shard)]


def discard(folder: StageFolder, lost: Sequence[int]) -> None:
    """Delete what is left of lost shards, so that they are made again."""
    if lost:
        first = folder.shard_url(lost[0])
        say(f"{len(lost):,} committed shards are lost and made again (first: {first})")
    for shard in lost:
        if not is_whole(folder, shard):  # Another process may just have made it again.
            discard_shard(folder, shard)


def _check_replacement(
    stage: Stage, files: StageFiles, unmade: Sequence[int], lost: Sequence[int]
) -> None:
    """Refuse to make shards if another stage was made from ones that may have differed."""
    # The file of a worker that died is adopted.
    gone = [shard for shard in unmade if files.size(stage.folder.shard_path(shard)) is None]
    replaced = {*lost, *gone}
    reader = stage.feeds
    if replaced and reader is not None and storage.exists(reader.run_yaml_url):
        first = stage.folder.shard_url(min(replaced))
        raise UnfinishedError(
            f"{len(replaced):,} shards of {stage.folder.url} are missing (first: {first}), but "
            f"{reader.url} was made from it, and a model may write other {stage.unit} this time: "
            f"either keep {reader.url}, which is all that later stages read, and do not run "
            f"{stage.folder.command} and {reader.command} again, or run both with another `run`"
        )


def finish(stage: StageOutput) -> None:
    """Check that every shard is committed, and write the index and `_SUCCESS`."""
    files = list_stage(stage.folder)
    missing = plan(stage, files)
    if missing:
        first = ", ".join(str(shard) for shard in missing[:5])
        raise UnfinishedError(
            f"{len(missing)} of {stage.num_shards} shards are missing in {stage.folder.url} "
            f"(first: {first}): {AGAIN}"
        )
    prefix, digest = stage.folder.kind.file_prefix, stage.fingerprint.digest
    metadata = index_metadata(prefix, digest, stage.metadata)
    records = shards.read_commits(stage.folder, range(stage.num_shards))
    success = write_index(stage.folder, _checked(stage, files, records), metadata)
    # Only now: with other settings than those of the shards, this is not the plan of the folder.
    write_plan(stage)
    made, failed = success["num_samples"], success["num_failures"]
    letters = f", {failed:,} failures in {stage.folder.url}/failures" if failed else ""
    say(f"{stage.folder.url}: {made:,} {stage.unit} in {stage.num_shards} shards{letters}")
    retry = stage.folder.retry(1 + sum(1 for _ in complete_retries(stage.folder)))
    if not stage.folder.is_retry and storage.exists(retry.run_yaml_url):
        say(
            f"{retry.url} is not complete, so the index does not list it: "
            f"run `python -m pipelines {retry.command}`"
        )


def _checked(
    stage: StageOutput, files: StageFiles, records: Iterable[CommitRecord]
) -> Iterator[CommitRecord]:
    """Yield the records, and raise an error at the end if some do not belong to the stage's files.

    Raises:
        UnfinishedError: Shards were made with other settings, or are cut off.
    """
    foreign, resized = [], []
    for record in records:
        if record.fingerprint != stage.fingerprint.digest:
            foreign.append(record.shard)
        if files.size(record.path) != record.num_bytes:
            resized.append(record.shard)
        yield record
    for wrong, what in (
        (foreign, "were committed with another fingerprint"),
        (resized, "have another size than their commit records say"),
    ):
        if wrong:
            folder = stage.folder
            raise UnfinishedError(
                f"{len(wrong)} shards in {folder.url} {what} (first: {wrong[0]}): run "
                f"{folder.repair_command}, which deletes them, then {folder.commands} again"
            )


def say(message: str) -> None:
    """Print one line for the person who watches."""
    print(redacted(message), file=sys.stderr, flush=True)


@contextlib.contextmanager
def progress(stage: StageOutput, num_pending: int) -> Iterator[None]:
    """Print what is planned, and show a bar of committed records while the body runs."""
    done = stage.num_shards - num_pending
    per_shard = stage.num_records / stage.num_shards
    name = stage.folder.url.rpartition("/")[2]
    why = f" ({stage.why_so_many})" if stage.why_so_many else ""
    say(
        f"{name}: {stage.num_records:,} {stage.unit}{why} in {stage.num_shards:,} shards, "
        f"{done:,} complete; the bar moves by whole shards"
    )
    stop = threading.Event()
    shown = bar(stage.num_records, stage.unit, name, initial=round(done * per_shard), smoothing=0)

    def update() -> None:
        committed = len(shards.committed_shards(stage.folder))
        shown.update(round(committed * per_shard) - shown.n)

    def watch() -> None:
        pause = POLL_INTERVAL_S
        while not stop.wait(pause):
            started = time.monotonic()
            with contextlib.suppress(StorageError):
                update()
            # Listing a large output takes time: spend at most a twentieth of the time on it.
            pause = max(POLL_INTERVAL_S, 20 * (time.monotonic() - started))

    watcher = threading.Thread(target=watch, name="progress", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()
        with contextlib.suppress(StorageError):
            update()
        shown.close()


def _produce(stage: Stage, pending: Sequence[int], beam_flags: Sequence[str]) -> None:
    import apache_beam as beam

    from transforms.produce import ProduceShards

    pipeline = new_pipeline(beam_flags)
    pipeline | "Plan" >> beam.Create(list(pending)) | ProduceShards(stage)
    run_pipeline(pipeline, f"{stage.folder.url}: {AGAIN}")


def new_pipeline(beam_flags: Sequence[str]) -> "Pipeline":
    """Return an empty Beam pipeline.

    Raises:
        ConfigError: A flag is wrong.
        StorageError: There is no space for temporary files.
    """
    import apache_beam as beam

    options = beam_options(beam_flags)
    with storage.accessing("write", temporary_folder()):
        pipeline = beam.Pipeline(options=options)
        # It is for transforms in other languages. A process that is killed would leave it behind.
        os.rmdir(pipeline.local_tempdir)
    return pipeline


def run_pipeline(pipeline: object, continuation: str) -> None:
    """Run a Beam pipeline and wait until it ends.

    Args:
        pipeline: A `beam.Pipeline`.
        continuation: Last part of the error message: what to do after a failure.

    Raises:
        UnfinishedError: The job failed; the message contains the worker's sentence.
    """
    end_children_with_this_process()  # Some runners start a job server, or workers, here.
    try:
        pipeline.run().wait_until_finish()  # type: ignore[attr-defined]
    except Exception as error:
        raise UnfinishedError(
            f"{worker_sentence(error)} (details: {_write_details(error)}); {continuation}"
        ) from error


def worker_sentence(error: Exception) -> str:
    """Return the message of a worker's exception, without the traceback around it.

    The direct runner raises the worker's exception itself, others the text of its traceback, whose
    last line is the exception.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1:
        lines = [line for line in lines if ": " in line and not line.startswith("File ")]
    sentence = (lines[-1] if lines else type(error).__name__).partition(" [while running")[0]
    name, _, message = sentence.partition(": ")
    is_class = name.replace(".", "").replace("_", "").isalnum() and "." in name
    return message if is_class else sentence


def _write_details(error: Exception) -> str:
    """Write the whole traceback to a file and return its path."""
    text = redacted("".join(traceback.format_exception(error)))
    try:
        return write_details(text)
    except OSError as unwritable:
        return f"not written, {unwritable.strerror}"
