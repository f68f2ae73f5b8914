"""The report as one HTML page that needs nothing but itself.

Styles, charts and images are inside; there is no script. It follows the reader's light or dark
setting, and the same run gives the same bytes.
"""

import statistics
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

import yaml

from pipelines.report.chart import line_chart
from pipelines.report.corpus_page import captions_section, images_section
from pipelines.report.data import RunReport, Score, TrainingSummary, score_table
from pipelines.report.html import MISSING, duration, folded, note, number_of_bytes, table
from pipelines.report.stages import StageSummary

TITLES = {
    "backgrounds": "Backgrounds",
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

STAGE_TITLES = (
    "stage", "state", "made", "failures", "shards", "stored", "work",
    "a shard: median, 95 %, slowest", "rate",
)  # fmt: skip
"""Of `stage_rows`."""


def render(report: RunReport) -> str:
    """The whole page."""
    style = files("pipelines").joinpath("data", "report.css").read_text(encoding="utf-8")
    name = escape(report.run.rstrip("/").rpartition("/")[2])
    sections = {
        "Stages": _stages(report),
        "Captions": captions_section(report.captions, report.stages["captions-raw"]),
        "Images": images_section(report.examples, report.images, report.stages["images"]),
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


def stage_rows(report: RunReport) -> list[list[str]]:
    """One line per stage and one for the training; an optional stage that has not run has none."""
    rows = []
    for name, stage in report.stages.items():
        if stage is not None:
            rows.append(_stage_row(stage))
        elif name != "backgrounds":
            rows.append([TITLES[name], "has not run yet", *[""] * 7])
    rows.append(_training_row(report.training))
    return rows


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


def _stage_row(stage: StageSummary) -> list[str]:
    planned = "" if stage.complete or not stage.planned_shards else f" of {stage.planned_shards:,}"
    times = stage.shard_seconds
    about = "about " if stage.estimated else ""
    row = [
        TITLES[stage.name],
        "complete" if stage.complete else "unfinished",
        f"{stage.num_samples:,} {stage.unit}",
        f"{stage.num_failures:,}",
        f"{stage.num_shards:,}{planned}",
        number_of_bytes(stage.num_bytes),
        about + duration(stage.seconds),
        f"{times.median:.1f}, {times.p95:.1f}, {times.slowest:.1f} s (#{times.slowest_shard})",
    ]
    # Curation reads and writes whole partitions: its time per shard says nothing.
    if stage.name == "captions":
        return [*row[:-2], "", "", ""]
    made = stage.per_second(stage.num_samples * (stage.images_per_sample or 1))
    return [*row, f"{made:,.1f} {'images' if stage.images_per_sample else stage.unit}/s"]


def _training_row(training: TrainingSummary | None) -> list[str]:
    if training is None:
        return ["Training", "has not run yet", *[""] * 7]
    speeds = [speed for _, speed in training.curves.get("images_per_s", [])]
    rate = f"{statistics.median(speeds):,.1f} images/s" if speeds else ""
    made = f"{training.last_step:,} steps"
    return ["Training", "", made, "", "", number_of_bytes(training.num_bytes), "", "", rate]


def _stages(report: RunReport) -> str:
    text = "“Work” is summed over shards: with two workers it passes twice as fast."
    large = [
        f"{TITLES[stage.name].lower()}: {stage.num_records_read:,} of {stage.num_shards:,}"
        for stage in report.stages.values()
        if stage is not None and stage.estimated
    ]
    if large:
        text += f" Times and counters are estimates from some shards ({'; '.join(large)})."
    return note(text) + table(STAGE_TITLES, stage_rows(report))


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
        return note("Nothing was dropped, made again or given up.")
    text = (
        "“Counted” is what happened on the way, by the counters of the commit records, those of "
        "retries among them; “given up” are the records that are missing in the end."
    )
    return note(text) + table(("stage", "", "reason", "number"), rows)


def _training(report: RunReport) -> str:
    if report.training is None:
        return MISSING.format("The training")
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
        return MISSING.format("The evaluation")
    encoders, lines = score_table(scores)
    rows = []
    for line in lines:
        first = next(score for score in line if score is not None)
        chance = "" if first.chance is None else f"{first.chance:.1f}"
        start = [first.dataset, first.protocol, first.metric, chance]
        rows.append(start + [score_text(score) for score in line])
    text = "In percent, with the standard error or the spread over seeds."
    return note(text) + table(["data set", "protocol", "metric", "chance", *encoders], rows)


def _settings(report: RunReport) -> str:
    kept: dict[str, Mapping[str, Any]] = {
        TITLES[name]: stage.settings for name, stage in report.stages.items() if stage is not None
    }
    if report.training is not None:
        kept["Training"] = report.training.settings
    if not kept:
        return note("Nothing has run yet.")
    return "".join(
        folded(title, f"<pre>{escape(_as_yaml(settings))}</pre>")
        for title, settings in kept.items()
    )


def _as_yaml(settings: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(settings), sort_keys=True, allow_unicode=True)
