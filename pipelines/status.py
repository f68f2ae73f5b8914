"""Progress of a run: for each stage the shards done and left, the rate, and the failures.

`python -m pipelines status RUN` works at any time and on any machine that has access to the run's
storage. It lists the commit records without reading them, so it answers in seconds at 600,000
shards; the rate follows from the times at which they were written.
"""

import itertools
import random
import time
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from tabulate import tabulate

from transforms.core import storage
from transforms.core.config import Config, Place, no_fingerprint
from transforms.core.dead_letters import read_letters, shards_with_letters
from transforms.core.errors import ConfigError
from transforms.core.index import examine
from transforms.core.stages import StageOutput, find_outputs

WINDOW_S = 900.0
"""Time before now over which the rate of a running stage is taken. A stopped stage has its mean."""

MIN_SILENCE_S = 300.0
"""A stage whose newest commit record is younger than this is running."""

SILENCES = 3.0
"""It is also running if that record is younger than this many long intervals between commits."""

MAX_LETTERS_READ = 500
"""Dead-letter files that are read to count failures; if there are more, a random sample is read."""


HEADERS = ("stage", "shards", "done", "rate", "left", "failures", "state")


class StatusConfig(Config):
    """Settings of `status`."""

    run: Place = no_fingerprint()
    """Folder or URL of the run."""


CONFIG = StatusConfig


def run(config: StatusConfig, flags: Sequence[str]) -> None:
    """Print a table with one line per stage; Beam's flags have no effect.

    Raises:
        ConfigError: No stage of the run was started.
    """
    outputs = list(find_outputs(config.run))
    if not outputs:
        raise ConfigError(f"{config.run} holds no stage that was started, so it has no status")
    now = time.time()
    rows = [
        [output.folder.url.removeprefix(config.run).strip("/"), *columns(output, now)]
        for output in outputs
    ]
    align = ("left", "right", "right", "right", "right", "left", "left")
    print(tabulate(rows, HEADERS, "plain", colalign=align, disable_numparse=True))


def columns(output: StageOutput, now: float) -> list[str]:
    """Return the row of a stage at the time `now`, without its name; see `HEADERS`."""
    times = storage.list_times(storage.join(output.folder.url, "commits")).values()
    done, planned = len(times), output.num_shards
    running = done < planned and bool(times) and now - max(times) < longest_silence(times)
    per_second = rate(times, now, running)
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
