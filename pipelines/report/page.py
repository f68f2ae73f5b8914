"""The report as one self-contained HTML page.

The templates in `templates/` hold the layout; this module computes what they show. Styles, charts
and images are inside the page, and there is no script. The page follows the reader's light or dark
setting. The same run gives the same bytes. Every text is escaped by Jinja2.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from pipelines.report import chart, formats
from pipelines.report.chart import Chart, column_chart, line_chart
from pipelines.report.corpus import MAX_WORDS
from pipelines.report.data import RunReport, TrainingSummary
from pipelines.report.stages import StageSummary
from pipelines.report.tables import STAGE_HEADERS, score_table, stage_rows

CURVES = {
    "loss": "Loss",
    "global": "Contrastive, global crops",
    "local": "Contrastive, local crops",
    "ibot": "iBOT",
    "learning_rate": "Learning rate",
    "images_per_s": "Images per second",
}
"""Titles of the curves that are shown first, if they were logged; loss terms are unweighted."""

NUM_CONCEPTS = 10
"""Concepts in the tables of most and fewest captions."""
MIN_EXPECTED = 5.0
"""Captions that a concept must be planned to have to be in these tables; below, chance decides."""

_DROP = "drop_"
_FORMATS = (
    formats.count,
    formats.decimal,
    formats.significant,
    formats.percent,
    formats.byte_size,
)


def render(report: RunReport) -> str:
    """Return the whole page."""
    captions = report.captions
    return (
        _environment()
        .get_template("page.html")
        .render(
            report=report,
            name=report.run.rstrip("/").rpartition("/")[2],
            summary=_summary(report),
            stage_headers=STAGE_HEADERS,
            stage_rows=stage_rows(report),
            completions=_completions(report.stages["captions-raw"]),
            concepts=captions and _concepts(captions.balance["concept"]),
            lengths=captions and _lengths(captions.lengths),
            curves=_curves(report.training),
            scores=score_table(report.scores),
            counters=_counters(report),
            settings=_settings(report),
        )
    )


@dataclass(frozen=True)
class _Curve:
    """A logged value over the steps."""

    title: str
    last: float
    chart: Chart | None


@dataclass(frozen=True)
class _Completions:
    """Completions of the language model that were dropped."""

    num_asked: int
    """Number of all completions, kept or dropped."""
    num_tokens: int
    dropped: Sequence[tuple[str, int]]
    """(reason, number), the largest number first."""


@dataclass(frozen=True)
class _Concept:
    """A concept in the tables of most and fewest captions."""

    name: str
    source: str
    captions: int
    times_planned: float | None
    """Captions divided by the planned number; None without a plan."""


@dataclass(frozen=True)
class _Concepts:
    """The concepts with most and fewest captions relative to the plan."""

    number: int
    num_without_captions: int
    min_expected: float | None
    """Planned captions of the concepts that are compared; None without a plan."""
    most: Sequence[_Concept]
    fewest: Sequence[_Concept]
    """The fewest first."""


@cache
def _environment() -> Environment:
    environment = Environment(
        autoescape=True,
        loader=PackageLoader("pipelines.report"),
        lstrip_blocks=True,
        trim_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters.update(
        {function.__name__: function for function in _FORMATS},
        data_uri=_data_uri,
        words=lambda name: name.replace("_", " "),
    )
    environment.globals["chart"] = chart
    return environment


def _summary(report: RunReport) -> str:
    parts = []
    for stage in report.stages.values():
        if stage is not None and stage.name == "captions":
            parts.append(f"{formats.count(stage.num_samples)} captions")
        if stage is not None and stage.images_per_sample:
            number = stage.num_samples * stage.images_per_sample
            parts.append(f"{formats.count(number)} images")
    if report.training is not None:
        parts.append(f"{formats.count(report.training.last_step)} training steps")
    return ", ".join(parts) or "Nothing has been made yet."


def _completions(raw: StageSummary | None) -> _Completions | None:
    if raw is None:
        return None
    dropped = [
        (name.removeprefix(_DROP), number)
        for name, number in raw.counts.items()
        if name.startswith(_DROP)
    ]
    return _Completions(
        num_asked=max(raw.num_samples + raw.num_failures + raw.counts.get("retries", 0), 1),
        num_tokens=raw.counts.get("tokens", 0),
        dropped=sorted(dropped, key=lambda item: -item[1]),
    )


def _concepts(rows: Sequence[Mapping[str, Any]]) -> _Concepts:
    total = sum(row["captions"] for row in rows)
    has_plan = any(row["planned"] for row in rows)

    def concept(row: Mapping[str, Any]) -> _Concept:
        times = row["captions"] / (row["planned"] * total) if has_plan else None
        return _Concept(row["name"], row["source"], row["captions"], times)

    def order(found: _Concept) -> tuple[float, str]:
        times = found.captions if found.times_planned is None else found.times_planned
        return -times, found.name

    compared = [
        row for row in rows if not has_plan or (row["planned"] or 0) * total >= MIN_EXPECTED
    ]
    ranked = sorted(map(concept, compared), key=order)
    return _Concepts(
        number=len(rows),
        num_without_captions=sum(not row["captions"] for row in rows),
        min_expected=MIN_EXPECTED if has_plan else None,
        most=ranked[:NUM_CONCEPTS],
        fewest=ranked[NUM_CONCEPTS:][-NUM_CONCEPTS:][::-1],
    )


def _lengths(lengths: Sequence[int]) -> Chart | None:
    last = max((words for words, number in enumerate(lengths) if number), default=0)
    labels = [f"{words}{'+' if words == MAX_WORDS else ''}" for words in range(last + 1)]
    return column_chart("captions by number of words", labels, lengths[: last + 1])


def _curves(training: TrainingSummary | None) -> list[_Curve]:
    if training is None:
        return []
    curves = training.curves
    # A loss term that is off is logged as zeros.
    shown = [name for name in CURVES if name in curves and any(y for _, y in curves[name])]
    shown += sorted(
        name
        for name, points in curves.items()
        if name not in CURVES and len({value for _, value in points}) > 1
    )
    return [
        _Curve(
            title=CURVES.get(name, name.replace("_", " ")),
            last=curves[name][-1][1],
            chart=line_chart(name, curves[name]),
        )
        for name in shown
    ]


def _counters(report: RunReport) -> list[tuple[str, str, str, int]]:
    """Return (stage, "counted" or "failed", reason, number) for each counter and dead letter."""
    rows = []
    for stage in report.stages.values():
        if stage is not None:
            found = {"counted": stage.counts, "failed": stage.failures}
            for kind, numbers in found.items():
                rows += [(stage.title, kind, *item) for item in numbers.items()]
    return rows


def _settings(report: RunReport) -> dict[str, str]:
    """Return the settings of each stage and of the training, as YAML by title."""
    found: dict[str, Mapping[str, Any]] = {
        stage.title: stage.settings for stage in report.stages.values() if stage is not None
    }
    if report.training is not None:
        found["Training"] = report.training.settings
    return {
        title: yaml.safe_dump(dict(settings), sort_keys=True, allow_unicode=True)
        for title, settings in found.items()
    }


def _data_uri(image: bytes) -> str:
    kind = "png" if image.startswith(b"\x89PNG") else "webp" if image[:4] == b"RIFF" else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"
