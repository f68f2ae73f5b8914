"""The report as one HTML page that needs nothing but itself.

Styles, charts and images are inside; there is no script. It follows the reader's light or dark
setting, and the same run gives the same bytes.
"""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

import yaml

from pipelines.report_chart import line_chart
from pipelines.report_data import Example, RunReport, Score, StageSummary, score_table

TITLES = {
    "captions-raw": "Captions, as written",
    "captions": "Captions, curated",
    "images": "Images",
}
CURVES = {
    "loss": "Loss",
    "global": "Contrastive, global crops",
    "local": "Contrastive, local crops",
    "ibot": "iBOT",
    "learning_rate": "Learning rate",
    "images_per_s": "Images per second",
}
"""The curves that are shown first, if they were logged; loss terms are unweighted."""

_MISSING = '<p class="quiet">{} has not run yet.</p>'


def render(report: RunReport) -> str:
    """The whole page."""
    style = files("pipelines").joinpath("data", "report.css").read_text(encoding="utf-8")
    name = escape(report.run.rstrip("/").rpartition("/")[2])
    sections = {
        "Stages": _stages(report),
        "Captions and their images": _contact_sheet(report.examples),
        "Training": _training(report),
        "Scores": _scores(report.scores),
        "Counters and failures": _losses(report),
        "Settings": _settings(report),
    }
    body = "\n".join(
        f"<section><h2>{title}</h2>\n{content}</section>" for title, content in sections.items()
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>Run {name}</title>\n<style>\n{style}</style></head>\n<body>\n"
        f"<header><h1>Run <b>{name}</b></h1><p>{escape(_summary(report))}</p></header>\n"
        f"<main>\n{body}\n</main>\n</body></html>\n"
    )


def number_of_bytes(number: int) -> str:
    """Bytes for people."""
    value, units = float(number), ["bytes", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:,.0f} {units[0]}" if units[0] == "bytes" else f"{value:,.1f} {units[0]}"


def duration(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def rate(stage: StageSummary) -> str:
    """Captions or images per second of work."""
    if not stage.seconds:
        return ""
    made = stage.num_samples * (stage.images_per_sample or 1)
    return f"{made / stage.seconds:,.1f} {'images' if stage.images_per_sample else 'captions'}/s"


def score_text(score: Score | None) -> str:
    """A score in percent, with its error where that is known."""
    if score is None:
        return ""
    return f"{score.value:.1f}" + (f" ± {score.error:.1f}" if score.error is not None else "")


def _summary(report: RunReport) -> str:
    parts = []
    for stage in report.stages.values():
        if stage is not None and stage.name == "captions":
            parts.append(f"{stage.num_samples:,} captions")
        if stage is not None and stage.images_per_sample:
            parts.append(f"{stage.num_samples * stage.images_per_sample:,} images")
    if report.training is not None:
        parts.append(f"{report.training.last_step:,} training steps")
    return ", ".join(parts) or "Nothing has been made yet."


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that scrolls sideways where it does not fit; cells are escaped."""
    head = "".join(f"<th>{escape(title)}</th>" for title in titles)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="wide">{table}</div>'


def _stages(report: RunReport) -> str:
    titles = ("stage", "state", "made", "failures", "shards", "size", "work", "rate")
    rows = []
    for name, stage in report.stages.items():
        if stage is None:
            rows.append([TITLES[name], "has not run yet", *[""] * 6])
            continue
        rows.append(
            [
                TITLES[name],
                "complete" if stage.complete else "unfinished",
                f"{stage.num_samples:,} {stage.unit}",
                f"{stage.num_failures:,}",
                f"{stage.num_shards:,}",
                number_of_bytes(stage.num_bytes),
                duration(stage.seconds),
                rate(stage),
            ]
        )
    return _table(titles, rows)


def _losses(report: RunReport) -> str:
    """Counters and dead letters of each stage."""
    rows = []
    for name, stage in report.stages.items():
        if stage is None:
            continue
        for reason, number in stage.counts.items():
            rows.append([TITLES[name], "counted", reason.replace("_", " "), f"{number:,}"])
        for reason, number in stage.failures.items():
            rows.append([TITLES[name], "given up", reason.replace("_", " "), f"{number:,}"])
    if not rows:
        return '<p class="quiet">Nothing was dropped, made again or given up.</p>'
    note = (
        '<p class="quiet">“Counted” is what happened on the way, by the counters of the '
        "commit records; “given up” are the records that are missing in the end.</p>"
    )
    return note + _table(("stage", "", "reason", "number"), rows)


def _contact_sheet(examples: Sequence[Example]) -> str:
    if not examples:
        return _MISSING.format("The images stage")
    return '<div class="sheet">' + "".join(_card(example) for example in examples) + "</div>"


def _card(example: Example) -> str:
    images = "".join(
        f'<img src="{_data_uri(image)}" alt="Image {number} of the caption below" loading="lazy">'
        for number, image in enumerate(example.images, 1)
    )
    return (
        f'<figure><div class="row">{images}</div><figcaption>{escape(example.text)} '
        f"<small>{escape(example.concept)}</small></figcaption></figure>"
    )


def _data_uri(image: bytes) -> str:
    kind = "png" if image.startswith(b"\x89PNG") else "webp" if image[:4] == b"RIFF" else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def _training(report: RunReport) -> str:
    if report.training is None:
        return _MISSING.format("The training")
    curves = report.training.curves
    # A term that the objective leaves out is logged as zeros.
    shown = [name for name in CURVES if name in curves and any(y for _, y in curves[name])]
    shown += sorted(name for name in curves if name not in CURVES and _varies(curves[name]))
    charts = "".join(
        f"<figure><h3>{escape(CURVES.get(name, name.replace('_', ' ')))} "
        f"<small>{curves[name][-1][1]:.4g} at the end</small></h3>"
        f"{line_chart(name, curves[name])}</figure>"
        for name in shown
    )
    return f'<div class="charts">{charts}</div>'


def _varies(points: Sequence[tuple[int, float]]) -> bool:
    return len({value for _, value in points}) > 1


def _scores(scores: Sequence[Score]) -> str:
    if not scores:
        return _MISSING.format("The evaluation")
    encoders, lines = score_table(scores)
    rows = []
    for line in lines:
        first = next(score for score in line if score is not None)
        chance = "" if first.chance is None else f"{first.chance:.1f}"
        start = [first.dataset, first.protocol, first.metric, chance]
        rows.append(start + [score_text(score) for score in line])
    note = '<p class="quiet">In percent, with the standard error or the spread over seeds.</p>'
    return note + _table(["data set", "protocol", "metric", "chance", *encoders], rows)


def _settings(report: RunReport) -> str:
    kept: dict[str, Mapping[str, Any]] = {
        TITLES[name]: stage.settings for name, stage in report.stages.items() if stage is not None
    }
    if report.training is not None:
        kept["Training"] = report.training.settings
    if not kept:
        return '<p class="quiet">Nothing has run yet.</p>'
    return "".join(
        f"<details><summary>{title}</summary><pre>"
        f"{escape(yaml.safe_dump(dict(settings), sort_keys=True, allow_unicode=True))}"
        "</pre></details>"
        for title, settings in kept.items()
    )
