"""Run a stage: claim the folder, plan, drop the committed shards, produce the others, index.

The launching process counts commit records against the plan, so the progress bar is the same on a
laptop, on Flink and on Dataflow.
"""

import contextlib
import random
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence

from pipelines.options import beam_options
from transforms.core import shards
from transforms.core.errors import ConfigError, StorageError, UnfinishedError
from transforms.core.fingerprint import claim
from transforms.core.index import read_success, write_index
from transforms.core.processes import end_children_with_this_process
from transforms.core.progress import bar
from transforms.core.references import redacted
from transforms.core.shards import CommitRecord
from transforms.core.stages import Stage, StageOutput, write_plan

POLL_INTERVAL_S = 1.0
AGAIN = "run the same command again to continue"


def run_stage(stage: Stage, beam_flags: Sequence[str]) -> None:
    """Make every shard of a stage that is not committed yet, then the index and `_SUCCESS`.

    Args:
        stage: The stage.
        beam_flags: Beam's flags, as `options.split_flags` returns them.

    Raises:
        ConfigError: The folder was made with other settings, or holds more than the plan.
        UnfinishedError: Some shards could not be made; committed shards are kept.
    """
    if beam_flags:
        beam_options(beam_flags)  # A wrong flag is an error before anything is written.
    claim(stage.folder.run_yaml_url, stage.fingerprint, stage.config)
    if is_complete(stage):
        say(f"{stage.folder.url} is complete: {stage.num_records:,} {stage.unit}, nothing to do")
        return
    pending = plan(stage)
    write_plan(stage)
    if pending:
        # In random order, two launchers on one output seldom work on the same shard.
        random.SystemRandom().shuffle(pending)
        with progress(stage, len(pending)):
            _produce(stage, pending, beam_flags)
    finish(stage)


def is_complete(stage: StageOutput) -> bool:
    """Return whether `_SUCCESS` exists and covers the plan."""
    success = read_success(stage.folder)
    return success is not None and int(success["num_shards"]) == stage.num_shards


def plan(stage: StageOutput) -> list[int]:
    """Return the shards that are not committed yet, in order, by one listing."""
    committed = shards.committed_shards(stage.folder)
    beyond = [shard for shard in committed if shard >= stage.num_shards]
    if beyond:
        raise ConfigError(
            f"{stage.folder.url} holds shard {max(beyond)}, but the config plans only "
            f"{stage.num_shards} shards: ask for at least as many as there are, or choose "
            "another `run`"
        )
    return sorted(set(range(stage.num_shards)) - committed)


def finish(stage: StageOutput) -> None:
    """Check that every shard is committed, and write the index and `_SUCCESS`."""
    missing = plan(stage)
    if missing:
        first = ", ".join(str(shard) for shard in missing[:5])
        raise UnfinishedError(
            f"{len(missing)} of {stage.num_shards} shards are missing in {stage.folder.url} "
            f"(first: {first}): {AGAIN}"
        )
    metadata = {
        "stage": stage.folder.kind.file_prefix,
        "fingerprint": stage.fingerprint.digest,
        **stage.metadata,
    }
    records = shards.read_commits(stage.folder, range(stage.num_shards))
    success = write_index(stage.folder, _check_fingerprints(stage, records), metadata)
    # Only now: with other settings than those of the shards, this is not the plan of the folder.
    write_plan(stage)
    made, failed = success["num_samples"], success["num_failures"]
    letters = f", {failed:,} failures in {stage.folder.url}/failures" if failed else ""
    say(f"{stage.folder.url}: {made:,} {stage.unit} in {stage.num_shards} shards{letters}")


def _check_fingerprints(
    stage: StageOutput, records: Iterable[CommitRecord]
) -> Iterator[CommitRecord]:
    """Yield the records, and raise an error at the end if some were made with other settings."""
    foreign = []
    for record in records:
        if record.fingerprint != stage.fingerprint.digest:
            foreign.append(record.shard)
        yield record
    if foreign:
        raise UnfinishedError(
            f"{len(foreign)} shards in {stage.folder.url} were committed with another fingerprint "
            f"(first: {foreign[0]}): delete their commit records and shard files, then {AGAIN}"
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

    pipeline = beam.Pipeline(options=beam_options(beam_flags))
    pipeline | "Plan" >> beam.Create(list(pending)) | ProduceShards(stage)
    run_pipeline(pipeline, f"{stage.folder.url}: {AGAIN}")


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
        descriptor, path = tempfile.mkstemp(prefix="synclr-", suffix=".log", text=True)
        with open(descriptor, "w") as file:
            file.write(text)
    except OSError as unwritable:
        return f"not written, {unwritable.strerror}"
    return path
