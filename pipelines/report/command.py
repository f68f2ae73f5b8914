"""Write one HTML page about a run: numbers per stage, captions, images, loss curves, score sheet.

Reads what the stages, the training and the evaluation left in `<run>` and writes
`<run>/report.html`, and the same without pictures as `<run>/report.json`. What has not run yet is
said to be missing; of a large stage some shards are read, and the page says so.
"""

import json
from collections.abc import Sequence

from pydantic import NonNegativeInt

from pipelines.report.data import RunReport, as_json, gather, score_table
from pipelines.report.page import STAGE_TITLES, render, score_text, stage_rows
from transforms.core import storage
from transforms.core.config import Config
from transforms.core.errors import UnfinishedError


class ReportConfig(Config):
    """Settings of the report."""

    run: str
    """Folder or URL of the run."""
    num_examples: NonNegativeInt = 24
    """Captions shown with their images."""
    num_captions: NonNegativeInt = 30
    """Random captions shown."""


CONFIG = ReportConfig


def run(config: ReportConfig, flags: Sequence[str]) -> None:
    """Write the page, and print what it says in short; no flags are used."""
    report = gather(config.run, config.num_examples, config.num_captions)
    if not any(report.stages.values()) and report.training is None and not report.scores:
        raise UnfinishedError(
            f"{config.run} holds nothing to report on: run its stages first, or mend `run`"
        )
    numbers = json.dumps(as_json(report), indent=1, sort_keys=True, ensure_ascii=False)
    storage.update_bytes(numbers.encode("utf-8"), storage.join(config.run, "report.json"))
    url = storage.join(config.run, "report.html")
    storage.update_bytes(render(report).encode("utf-8"), url)
    print(in_short(report))
    print(f"\nreport: {url}")


def in_short(report: RunReport) -> str:
    """The report as two small tables for a terminal."""
    lines = [STAGE_TITLES, *stage_rows(report)]
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
