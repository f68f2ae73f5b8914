"""The score sheet of a run: scores as JSON for programs and as tables for people.

Each task writes one file per data set, `<run>/scores/<task>-<data set>.json`, with its scores and
the fingerprint of what they depend on. `scores.json` (a list of all scores) and `scores.md` are
assembled from the files about the newest checkpoint, so data sets can be scored one after another.
All are derived files: scores of another checkpoint replace those of the same task and data set.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate

from trainer.evaluate import paper
from transforms.core import storage
from transforms.core.errors import MissingFileError
from transforms.core.fingerprint import Fingerprint
from transforms.core.scores import FILE_NAME, Score, decode_score, encode_scores

ENCODERS = ("pixels", "untrained", "trained")
"""Columns of the table, from the weakest to the strongest baseline."""
TITLES = ("data set", "protocol", "metric", "chance", *ENCODERS)


@dataclass(frozen=True)
class TaskScores:
    """Scores of one task on one data set, and what they depend on."""

    task: str
    dataset: str
    checkpoint: str
    """Digest of the checkpoint file."""
    fingerprint: str
    rows: list[Score]


def save(folder: str, scores: TaskScores) -> None:
    """Write the file of a task and data set."""
    content = json.dumps(dataclasses.asdict(scores), indent=1)
    url = storage.join(folder, _name(scores.task, scores.dataset))
    storage.replace_bytes(content.encode("utf-8"), url)


def load(folder: str, task: str, dataset: str) -> TaskScores | None:
    """Read the file of a task and data set; None if it is missing or of another format."""
    return _read(storage.join(folder, _name(task, dataset)))


def _read(url: str) -> TaskScores | None:
    try:
        content = json.loads(storage.read_bytes(url))
        rows = [decode_score(row) for row in content.pop("rows")]
        return TaskScores(**content, rows=rows)
    except MissingFileError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None  # Of another version: the scores are computed again.


def fingerprint(
    task: str, settings: dict[str, Any], checkpoint: str, dataset: str, version: int
) -> str:
    """Return the digest of everything that a task's scores on a data set depend on."""
    return Fingerprint(
        {
            "task": task,
            "settings": settings,
            "checkpoint": checkpoint,
            "dataset": dataset,
            "version": version,
        }
    ).digest


def publish(
    folder: str, tasks: Iterable[str], checkpoint: str, absent: Mapping[str, str] | None = None
) -> list[Score]:
    """Write `scores.json` and `scores.md` from the tasks' files and return all scores.

    Files about another checkpoint are left out.

    Args:
        folder: Folder of the files.
        tasks: Names of tasks.
        checkpoint: Digest of the checkpoint.
        absent: Data set that was asked for and is not there -> why.
    """
    names = sorted(storage.list_files(folder))
    own = [name for task in tasks for name in names if name.startswith(f"{task}-")]
    found = [_read(storage.join(folder, name)) for name in own]
    scores = [score for f in found if f and f.checkpoint == checkpoint for score in f.rows]
    storage.update_bytes(encode_scores(scores), storage.join(folder, FILE_NAME))
    text = markdown(scores, absent or {})
    storage.update_bytes(text.encode("utf-8"), storage.join(folder, "scores.md"))
    return scores


def table(scores: Sequence[Score]) -> list[list[str]]:
    """Return the cells of the sheet: a line per data set, protocol and metric.

    Metrics of a protocol are in the order of its scores.
    """
    lines: dict[tuple[str, str, str], list[str]] = {}
    for score in _sorted(scores):
        chance = "" if score.chance is None else f"{score.chance:.1f}"
        start = [score.dataset, score.protocol, score.metric, chance]
        key = score.dataset, score.protocol, score.metric
        line = lines.setdefault(key, start + [""] * len(ENCODERS))
        line[len(start) + ENCODERS.index(score.encoder)] = str(score)
    return list(lines.values())


def plain(scores: Sequence[Score]) -> str:
    """Return the sheet for a terminal."""
    return tabulate(table(scores), TITLES, tablefmt="plain", disable_numparse=True)


def markdown(scores: Sequence[Score], absent: Mapping[str, str] | None = None) -> str:
    """Return the sheet as Markdown, with the paper's results for data sets that it has."""
    lines = ["# Scores", "", _markdown_table(TITLES, table(scores)), "", LEGEND, ""]
    lines += [f"*{name}* is absent: {reason}\n" for name, reason in (absent or {}).items()]
    reported = [
        [dataset, paper.protocol(dataset), paper.METRICS[dataset], encoder, f"{value:.1f}"]
        for dataset in sorted({score.dataset for score in scores})
        for encoder, value in paper.headline(dataset).items()
    ]
    if reported:
        titles = ("data set", "protocol", "metric", "encoder", "score")
        lines += ["## As reported in the paper", "", _markdown_table(titles, reported), ""]
    if scores:
        lines += ["## Intervals, data and time", "", _markdown_table(MADE, made(scores)), ""]
        lines += [MADE_LEGEND, ""]
    return "\n".join(lines)


def made(scores: Sequence[Score]) -> list[list[str]]:
    """Return the cells of the table of intervals: a line per score."""

    def seconds(value: float | None) -> str:
        return "" if value is None else f"{value:.1f}"

    return [
        [
            score.dataset,
            score.protocol,
            score.metric,
            score.encoder,
            f"{score.value:.1f}",
            "" if score.interval is None else "{:.1f} to {:.1f}".format(*score.interval),
            str(score.num_train or ""),
            str(score.num_test or ""),
            str(len(score.unreadable)),
            seconds(score.features_s),
            seconds(score.protocol_s),
        ]
        for score in _sorted(scores)
    ]


def _sorted(scores: Sequence[Score]) -> list[Score]:
    """Sort by data set and protocol, not by metric: "10 shots" is before "2 shots" as text."""
    return sorted(scores, key=lambda score: (score.dataset, score.protocol))


MADE = (
    *("data set", "protocol", "metric", "encoder", "score", "95 % interval"),
    *("train + val", "test", "unreadable", "features (s)", "protocol (s)"),
)
MADE_LEGEND = (
    "Intervals: bootstrap over the test pictures, 1,000 draws (few-shot: over its own draws). "
    "*train + val*: for naming, the generated images. *unreadable*: pictures that could not be "
    "decoded and are left out; their names are in `scores.json`. "
    "Features are computed once for all protocols, and kept in `features/`."
)


LEGEND = (
    "All scores in percent. *pixels*: the pictures themselves as features; *untrained*: the same "
    "architecture with fresh weights, mean ± standard deviation over seeds; *trained*: ± the "
    "standard error due to the number of test pictures (few-shot: the standard deviation over its "
    "draws)."
)


def _markdown_table(titles: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return tabulate(lines, titles, tablefmt="github", disable_numparse=True)


def _name(task: str, dataset: str) -> str:
    return f"{task}-{dataset}.json"
