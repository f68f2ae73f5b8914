"""The score sheet of a run: rows of scores, as JSON for programs and as a table for people.

Every task leaves a file for each data set, `<run>/scores/<task>-<data set>.json`, with its rows and
the fingerprint of what they depend on. `scores.json` (all rows, a list) and `scores.md` are put
together from those of the newest checkpoint, so that data sets may be scored one after another.
All are derived files: what is scored again for another checkpoint replaces its own file.
"""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.evaluate import paper
from transforms.core import storage
from transforms.core.errors import MissingFileError
from transforms.core.fingerprint import Fingerprint

ENCODERS = ("pixels", "untrained", "trained")
"""Columns of the table, from the least to the most that a row can know."""
TITLES = ("data set", "protocol", "metric", "chance", *ENCODERS)


@dataclass(frozen=True)
class Row:
    """One score, or the mean over several seeds; scores are in percent."""

    encoder: str
    """trained, untrained (the same architecture with fresh weights) or pixels."""
    dataset: str
    protocol: str
    """The task: knn, logistic."""
    metric: str
    value: float
    error: float
    """Standard error that comes from the number of test pictures."""
    spread: float | None
    """Standard deviation over seeds; null for a single one."""
    values: list[float]
    """The score of each seed."""
    chance: float
    """What always naming the most frequent class scores."""
    num_classes: int
    num_train: int
    num_test: int
    details: list[dict[str, Any]]
    """What the protocol chose, for each seed."""


@dataclass(frozen=True)
class TaskScores:
    """What one task found on one data set, and what that depends on."""

    task: str
    dataset: str
    checkpoint: str
    """Digest of the checkpoint that was scored."""
    fingerprint: str
    rows: list[Row]


def save(folder: str, scores: TaskScores) -> None:
    """Write a task's file about a data set."""
    content = json.dumps(dataclasses.asdict(scores), indent=1)
    url = storage.join(folder, _name(scores.task, scores.dataset))
    storage.replace_bytes(content.encode("utf-8"), url)


def load(folder: str, task: str, dataset: str) -> TaskScores | None:
    """Read a task's file about a data set; None if it is not there or not readable as one."""
    return _read(storage.join(folder, _name(task, dataset)))


def _read(url: str) -> TaskScores | None:
    try:
        content = json.loads(storage.read_bytes(url))
        rows = [Row(**row) for row in content.pop("rows")]
        return TaskScores(**content, rows=rows)
    except MissingFileError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None  # A derived file of another version: it is made again.


def fingerprint(
    task: str, settings: dict[str, Any], checkpoint: str, dataset: str, version: int
) -> str:
    """Digest of what a task's rows about a data set depend on."""
    return Fingerprint(
        {
            "task": task,
            "settings": settings,
            "checkpoint": checkpoint,
            "dataset": dataset,
            "version": version,
        }
    ).digest


def publish(folder: str, tasks: Iterable[str], checkpoint: str) -> list[Row]:
    """Put `scores.json` and `scores.md` together from the tasks' files; returns their rows.

    Files about another checkpoint are left out.
    """
    names = sorted(storage.list_files(folder))
    own = [name for task in tasks for name in names if name.startswith(f"{task}-")]
    found = [scores for name in own if (scores := _read(storage.join(folder, name))) is not None]
    rows = [row for scores in found if scores.checkpoint == checkpoint for row in scores.rows]
    content = json.dumps([dataclasses.asdict(row) for row in rows], indent=1)
    storage.update_bytes(content.encode("utf-8"), storage.join(folder, "scores.json"))
    storage.update_bytes(markdown(rows).encode("utf-8"), storage.join(folder, "scores.md"))
    return rows


def table(rows: Sequence[Row]) -> list[list[str]]:
    """The cells of the sheet: one line per data set and protocol, one column per encoder."""
    lines: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        start = [row.dataset, row.protocol, row.metric, f"{row.chance:.1f}"]
        line = lines.setdefault((row.dataset, row.protocol), start + [""] * len(ENCODERS))
        line[len(start) + ENCODERS.index(row.encoder)] = _cell(row)
    return [lines[key] for key in sorted(lines)]


def plain(rows: Sequence[Row]) -> str:
    """The sheet for a terminal."""
    cells = [list(TITLES), *table(rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(TITLES))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )


def markdown(rows: Sequence[Row]) -> str:
    """The sheet as Markdown, with the paper's results where a data set is the paper's."""
    lines = ["# Scores", "", *_markdown_table(TITLES, table(rows)), "", _LEGEND, ""]
    named = {dataset: paper.headline(dataset) for dataset in sorted({row.dataset for row in rows})}
    theirs = [
        [dataset, paper.protocol(dataset), paper.METRICS[dataset], encoder, f"{value:.1f}"]
        for dataset, scores in named.items()
        for encoder, value in scores.items()
    ]
    if theirs:
        titles = ("data set", "protocol", "metric", "encoder", "score")
        lines += ["## As reported in the paper", "", *_markdown_table(titles, theirs), ""]
    return "\n".join(lines)


_LEGEND = (
    "All scores in percent. *pixels*: the pictures themselves as features; *untrained*: the same "
    "architecture with fresh weights, mean ± standard deviation over seeds; *trained*: ± the "
    "standard error that comes from the number of test pictures."
)


def _cell(row: Row) -> str:
    return f"{row.value:.1f} ± {row.error if row.spread is None else row.spread:.1f}"


def _markdown_table(titles: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(cells) + " |" for cells in (titles, ["---"] * len(titles), *lines)]


def _name(task: str, dataset: str) -> str:
    return f"{task}-{dataset}.json"
