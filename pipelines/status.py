"""Progress of a run: for each stage the shards done and left, the rate, and the failures.

`python -m pipelines status RUN` works at any time and on any machine that has access to the run's
storage. It lists the commit records without reading them, so it answers in seconds at 600,000
shards; the rate follows from the times at which they were written. A few records are read for the
time that a shard takes. `python -m pipelines status RUN --watch` shows it again and again.
"""

import contextlib
import itertools
import json
import random
import re
import signal
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

from pydantic import PositiveFloat
from tabulate import tabulate

from transforms.core import storage
from transforms.core.config import Config, Place, no_fingerprint
from transforms.core.dead_letters import read_letters, shards_with_letters
from transforms.core.errors import (
    ConfigError,
    DamagedFileError,
    MissingFileError,
    StorageError,
    reading,
)
from transforms.core.index import examine
from transforms.core.shards import read_commit
from transforms.core.stages import StageOutput, Unreadable, survey

WINDOW_S = 900.0
"""Time before now over which the rate of a running stage is taken. A stopped stage has its mean."""

MIN_SILENCE_S = 300.0
"""A stage whose newest commit record is younger than this is running."""

SILENCES = 3.0
"""It is also running if that record is younger than this many long intervals between commits."""

MAX_LETTERS_READ = 500
"""Dead-letter files that are read to count failures; if there are more, a random sample is read."""


NUM_RECORDS_READ = 16
"""Newest commit records that are read for the time that a shard takes."""

BAR_WIDTH = 20
"""Characters of a stage's bar."""

HEADERS = ("stage", "shards", "done", "rate", "left", "failures", "state")
WATCH_HEADERS = ("stage", "", *HEADERS[1:6], "workers", "state")
TRAINING_METRICS = ("loss", "knn", "learning_rate", "images_per_s", "waiting", "memory_gib")
CLEAR = "\x1b[H\x1b[2J\x1b[3J"
"""Moves a terminal's cursor to the first line of an empty screen."""


class StatusConfig(Config):
    """Settings of `status`."""

    run: Place = no_fingerprint()
    """Folder or URL of the run."""
    watch: bool = no_fingerprint(False)
    """Show the run until Ctrl-C; `--watch` does the same."""
    every_s: PositiveFloat = no_fingerprint(5.0)
    """Pause between two looks at a watched run, in seconds."""


CONFIG = StatusConfig


def run(config: StatusConfig, flags: Sequence[str]) -> None:
    """Print a table with one line per stage; Beam's flags have no effect.

    Raises:
        ConfigError: No stage of the run was started; a watched run is waited for.
    """
    if config.watch:
        watch(config)
        return
    outputs, unreadable = survey(config.run)
    if not outputs and not unreadable:
        raise ConfigError(f"{config.run} holds no stage that was started, so it has no status")
    now = time.time()
    rows = [
        [output.folder.url.removeprefix(config.run).strip("/"), *columns(output, now)]
        for output in outputs
    ]
    align = ("left", "right", "right", "right", "right", "left", "left")
    if rows:
        print(tabulate(rows, HEADERS, "plain", colalign=align, disable_numparse=True))
    for each in unreadable:
        print(unreadable_line(config.run, each))


def unreadable_line(run: str, stage: Unreadable) -> str:
    """Return the line of a stage that has no status, since a file of it is damaged or lost."""
    return f"{stage.folder.url.removeprefix(run).strip('/')}/{stage.file}: {stage.what}"


def watch(config: StatusConfig) -> None:
    """Show a run again and again until Ctrl-C; on a terminal, each look replaces the last."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    clear = CLEAR if sys.stdout.isatty() else ""
    try:
        while True:
            try:
                shown = screen(config.run, time.time())
            except (StorageError, DamagedFileError) as error:
                shown = str(error)  # It may be better at the next look.
            print(f"{clear}{shown}", flush=True)
            time.sleep(config.every_s)
    except KeyboardInterrupt:
        print()
    finally:
        signal.signal(signal.SIGINT, before)


def screen(run: str, now: float) -> str:
    """Return what a person who watches a run sees at the time `now`, in seconds since 1970."""
    lines = [f"{run}  {datetime.fromtimestamp(now):%H:%M:%S}, Ctrl-C ends the watch only", ""]
    rows = []
    outputs, unreadable = survey(run)
    for output in outputs:
        shards, done, *rest = columns(output, now)
        filled = int(float(done.rstrip("%")) / 100 * BAR_WIDTH)
        bar = "\N{FULL BLOCK}" * filled + "\N{MIDDLE DOT}" * (BAR_WIDTH - filled)
        name = output.folder.url.removeprefix(run).strip("/")
        rows.append([name, bar, shards, done, *rest[:3], workers(output, now), rest[3]])
    if rows:
        align = ("left", "left", *["right"] * 4, "left", "right", "left")
        lines.append(tabulate(rows, WATCH_HEADERS, "plain", colalign=align, disable_numparse=True))
    else:
        lines.append("no stage was started yet")
    lines += [unreadable_line(run, each) for each in unreadable]
    return "\n".join([*lines, *training(run)])


def training(run: str) -> list[str]:
    """Return lines about the last metrics of the training; none if there is no training."""
    try:
        content = storage.read_bytes(storage.join(run, "train", "metrics.jsonl"))
    except MissingFileError:
        return []
    # A training that is writing may have written half a line.
    lines = [line for line in content.split(b"\n")[:-1] if line]
    if not lines:
        return []
    with reading("the metrics of the training"):
        last = json.loads(lines[-1])
        shown = [f"{name} {last[name]:.4g}" for name in TRAINING_METRICS if name in last]
        return ["", "  ".join([f"training  step {last['step']:,}", *shown])]


def workers(output: StageOutput, now: float) -> str:
    """Return how many shards were in work at the same time in the last minutes, on average.

    That is the number of workers seen: shards per second times the seconds that a shard takes.
    """
    times = storage.list_times(storage.join(output.folder.url, "commits"))
    recent = [moment for moment in times.values() if moment > now - WINDOW_S]
    seconds = seconds_per_shard(output, times)
    if len(recent) < 2 or seconds is None or max(recent) - min(recent) < seconds:
        return "-"
    per_second = (len(recent) - 1) / (max(recent) - min(recent))
    return f"~{max(1, round(per_second * seconds))}"


def seconds_per_shard(output: StageOutput, times: Mapping[str, float]) -> float | None:
    """Return the mean time that the newest shards took, None if no record says so.

    Args:
        output: The stage.
        times: Name of each commit record -> when it was written.
    """
    seconds = []
    for name in sorted(times, key=lambda name: times[name])[-NUM_RECORDS_READ:]:
        number = re.search(r"(\d+)\.json$", name)
        # `verify` names damage.
        with contextlib.suppress(DamagedFileError, MissingFileError):
            if number:
                seconds.append(read_commit(output.folder, int(number[1])).seconds)
    return sum(seconds) / len(seconds) if seconds else None


def columns(output: StageOutput, now: float) -> list[str]:
    """Return the row of a stage at the time `now`, without its name; see `HEADERS`."""
    written = storage.list_times(storage.join(output.folder.url, "commits"))
    times = written.values()
    done, planned = len(times), output.num_shards
    running = done < planned and bool(times) and now - max(times) < longest_silence(times)
    per_second = rate(times, now, running)
    if done > 1 and max(times) - min(times) < (seconds_per_shard(output, written) or 0.0):
        # The files were copied, or no worker has made two shards: their times tell no rate.
        per_second = 0.0
    left = "-"
    if running and per_second:
        left = str(timedelta(seconds=round((planned - done) / per_second)))
    return [
        f"{done:,}/{planned:,}",
        f"{done / planned:.1%}",
        f"{per_second * output.num_records / planned:.1f}/s" if per_second else "-",
        left,
        failures(output),
        _state(output, times, now, running),
    ]


def longest_silence(times: Collection[float]) -> float:
    """Return the seconds without a commit after which a stage counts as stopped.

    Workers that start together commit together, so the limit depends on the 90th percentile of the
    intervals and not on their median. Pauses between two starts of a run are rarer than that.

    Args:
        times: When each shard was committed, in seconds since 1970.
    """
    intervals = sorted(later - before for before, later in itertools.pairwise(sorted(times)))
    if len(intervals) < 2:
        return WINDOW_S  # Its rate is not known yet.
    return max(MIN_SILENCE_S, SILENCES * intervals[int(0.9 * (len(intervals) - 1))])


def rate(times: Collection[float], now: float, running: bool) -> float:
    """Return the number of shards committed per second.

    Args:
        times: When each shard was committed, in seconds since 1970.
        now: The time, in seconds since 1970.
        running: Whether to use only the last `WINDOW_S` seconds, but at least two shards.
    """
    if not running:
        span = max(times) - min(times) if times else 0.0
        return (len(times) - 1) / span if span > 0 else 0.0
    recent = [moment for moment in times if moment > now - WINDOW_S]
    if len(recent) < 2:
        recent = sorted(times)[-2:]
    # The first time is the end of a shard and not its beginning.
    span = now - min(recent)
    return (len(recent) - 1) / span if span > 0 else 0.0


def failures(output: StageOutput) -> str:
    """Return the number of dead letters; "~" marks an estimate.

    Raises:
        DamagedFileError: A dead-letter file is damaged.
    """
    shards = shards_with_letters(output.folder)
    read = random.Random(0).sample(shards, min(len(shards), MAX_LETTERS_READ))

    def count(shard: int) -> int:
        return int(read_letters(output.folder, shard, ["record_id"]).num_rows)

    with ThreadPoolExecutor(16) as pool:
        counted = sum(pool.map(count, read))
    if len(read) == len(shards):
        return f"{counted:,}"
    return f"~{counted * len(shards) // len(read):,}"


def _state(output: StageOutput, times: Collection[float], now: float, running: bool) -> str:
    if running:
        return "running"
    if not times:
        return "started, nothing committed yet"
    if len(times) >= output.num_shards:
        state = examine(output.folder, output.num_shards)
        if state.summary is not None:
            return f"complete: {state.summary['num_samples']:,} {output.unit}"
        return f"unfinished: every shard is committed, but {state.fault}"
    since = timedelta(seconds=round(now - max(times)))
    return f"stopped: nothing was committed for {since}"
