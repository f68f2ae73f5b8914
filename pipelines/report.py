"""Write one HTML page about a run: numbers per stage, contact sheet, loss curves, score sheet.

Reads what the stages, the training and the evaluation left in `<run>` and writes
`<run>/report.html`. What has not run yet is said to be missing.
"""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from pipelines.report_data import RunReport, gather, score_table
from pipelines.report_page import TITLES, duration, rate, render, score_text
from pipelines.stage import UnfinishedError
from transforms.core import storage
from transforms.core.config import Config


class ReportConfig(Config):
    """Settings of the report."""

    run: str
    """Folder or URL of the run."""
    num_examples: Annotated[int, Field(ge=0)] = 24
    """Captions shown with their images."""


CONFIG = ReportConfig


def run(config: ReportConfig, flags: Sequence[str]) -> None:
    """Write the page, and print what it says in short; no flags are used."""
    report = gather(config.run, config.num_examples)
    if not any(report.stages.values()) and report.training is None and not report.scores:
        raise UnfinishedError(
            f"{config.run} holds nothing to report on: run its stages first, or mend `run`"
        )
    url = storage.join(config.run, "report.html")
    storage.update_bytes(render(report).encode("utf-8"), url)
    print(in_short(report))
    print(f"\nreport: {url}")


def in_short(report: RunReport) -> str:
    """The report as two small tables for a terminal."""
    lines = [["stage", "made", "failures", "shards", "work", "rate"]]
    for name, stage in report.stages.items():
        if stage is None:
            lines.append([TITLES[name], "has not run yet", "", "", "", ""])
            continue
        made = f"{stage.num_samples:,} {stage.unit}" + ("" if stage.complete else " (unfinished)")
        lines.append(
            [
                TITLES[name],
                made,
                f"{stage.num_failures:,}",
                f"{stage.num_shards:,}",
                duration(stage.seconds),
                rate(stage),
            ]
        )
    if report.training is None:
        lines.append(["Training", "has not run yet", "", "", "", ""])
    else:
        lines.append(["Training", f"{report.training.last_step:,} steps", "", "", "", ""])
    encoders, scores = score_table(report.scores)
    sheet = [["data set", "protocol", "metric", *encoders]]
    for line in scores:
        first = next(score for score in line if score is not None)
        start = [first.dataset, first.protocol, first.metric]
        sheet.append(start + [score_text(score) for score in line])
    second = _aligned(sheet) if report.scores else "The evaluation has not run yet."
    return f"{_aligned(lines)}\n\n{second}"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
