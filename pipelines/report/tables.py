"""Tables that the page and the terminal share: stages and scores."""

import statistics
from collections.abc import Sequence

from pipelines.report.data import RunReport, TrainingSummary
from pipelines.report.formats import byte_size, count, decimal, duration
from pipelines.report.stages import StageSummary
from transforms.core.scores import Score
from transforms.core.stages import STAGES

STAGE_HEADERS = (
    "stage", "state", "made", "failures", "shards", "stored", "work",
    "a shard: median, 95 %, slowest", "rate",
)  # fmt: skip
"""Headers of `stage_rows`."""

_NOT_RUN = "has not run yet"


def stage_rows(report: RunReport) -> list[list[str]]:
    """Return a row per stage and one for the training.

    An optional stage that has not run has no row.
    """
    rows = []
    for name, stage in report.stages.items():
        if stage is not None:
            rows.append(_stage_row(stage))
        elif not STAGES[name].optional:
            rows.append(_padded([STAGES[name].title, _NOT_RUN]))
    rows.append(_training_row(report.training))
    return rows


def score_table(scores: Sequence[Score]) -> tuple[list[str], list[list[str]]]:
    """Return the score sheet: headers, and a row per data set, protocol and metric.

    The last columns are the encoders, in the order in which the scores name them.
    """
    encoders = list(dict.fromkeys(score.encoder for score in scores))
    rows: dict[tuple[str, str, str], list[str]] = {}
    for score in scores:
        key = (score.dataset, score.protocol, score.metric)
        chance = "" if score.chance is None else decimal(score.chance)
        row = rows.setdefault(key, [*key, chance, *[""] * len(encoders)])
        row[4 + encoders.index(score.encoder)] = str(score)
    return ["data set", "protocol", "metric", "chance", *encoders], list(rows.values())


def _stage_row(stage: StageSummary) -> list[str]:
    planned = stage.planned_shards
    of_planned = f" of {count(planned)}" if planned and not stage.complete else ""
    row = [
        stage.title,
        "complete" if stage.complete else "unfinished",
        f"{count(stage.num_samples)} {stage.unit}",
        count(stage.num_failures),
        count(stage.num_shards) + of_planned,
        byte_size(stage.num_bytes),
    ]
    # A curation task reads and writes whole partitions: its time per shard has no meaning.
    if stage.name == "captions":
        return _padded(row)
    times = stage.shard_seconds
    seconds = ", ".join(map(decimal, (times.median, times.p95, times.slowest)))
    made = stage.per_second(stage.num_samples * (stage.images_per_sample or 1))
    return [
        *row,
        ("about " if stage.estimated else "") + duration(stage.seconds),
        f"{seconds} s (#{times.slowest_shard})",
        f"{decimal(made)} {'images' if stage.images_per_sample else stage.unit}/s",
    ]


def _training_row(training: TrainingSummary | None) -> list[str]:
    if training is None:
        return _padded(["Training", _NOT_RUN])
    speeds = [speed for _, speed in training.curves.get("images_per_s", [])]
    rate = f"{decimal(statistics.median(speeds))} images/s" if speeds else ""
    steps, stored = f"{count(training.last_step)} steps", byte_size(training.num_bytes)
    return ["Training", "", steps, "", "", stored, "", "", rate]


def _padded(row: list[str]) -> list[str]:
    return row + [""] * (len(STAGE_HEADERS) - len(row))
