"""Write one HTML page about a run: numbers per stage, captions, images, loss curves, score sheet.

Reads what the stages, the training and the evaluation wrote to `<run>`. Writes `<run>/report.html`,
and the numbers of the page without its pictures to `<run>/report.json`. A stage that has not run
yet is reported as missing. Of a large stage only some shards are read, and the page says so.
"""

import json
from collections.abc import Sequence

from pydantic import NonNegativeInt
from tabulate import tabulate

from pipelines.report.data import RunReport, as_json, gather
from pipelines.report.page import render
from pipelines.report.tables import STAGE_HEADERS, score_table, stage_rows
from transforms.core import storage
from transforms.core.config import Config, Place
from transforms.core.errors import UnfinishedError


class ReportConfig(Config):
    """Settings of the report."""

    run: Place
    """Folder or URL of the run."""
    num_examples: NonNegativeInt = 24
    """Number of captions that are shown with their images."""
    num_captions: NonNegativeInt = 30
    """Number of random captions that are shown."""


CONFIG = ReportConfig


def run(config: ReportConfig, flags: Sequence[str]) -> None:
    """Write the report and print its tables of stages and scores; flags have no effect.

    Raises:
        DamagedFileError: A file of the run is damaged.
        StorageError: A file of the run cannot be read.
        UnfinishedError: The run is empty.
    """
    report = gather(config.run, config.num_examples, config.num_captions)
    if not any(report.stages.values()) and report.training is None and not report.scores:
        raise UnfinishedError(
            f"{config.run} holds nothing to report on: run its stages first, or correct `run`"
        )
    numbers = json.dumps(as_json(report), indent=1, sort_keys=True, ensure_ascii=False)
    storage.update_bytes(numbers.encode("utf-8"), storage.join(config.run, "report.json"))
    url = storage.join(config.run, "report.html")
    storage.update_bytes(render(report).encode("utf-8"), url)
    print(terminal_tables(report))
    print(f"\nreport: {url}")


def terminal_tables(report: RunReport) -> str:
    """Return the tables of stages and scores as text."""
    stages = _text_table(STAGE_HEADERS, stage_rows(report))
    scores = "The evaluation has not run yet."
    if report.scores:
        scores = _text_table(*score_table(report.scores))
    return f"{stages}\n\n{scores}"


def _text_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    # Passed as `headers`, they would be padded.
    return tabulate([headers, *rows], tablefmt="plain", disable_numparse=True)
