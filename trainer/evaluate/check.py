"""Which data sets are there, which are missing, and how to get them.

    python -m trainer.evaluate check [CONFIG] [data=FOLDER]

A set that is there is read, so that its splits can be counted; no picture is decoded.
"""

from pathlib import Path

from tabulate import tabulate

from trainer.evaluate.config import EvaluateConfig
from trainer.evaluate.datasets import SOURCES, AbsentSetError, expand, load_dataset, name_of
from trainer.evaluate.datasets.builtin import BUILT_IN
from transforms.core.errors import ConfigError

TITLES = ("data set", "reference", "metric", "train / val / test", "how to get it")


def check(config: EvaluateConfig) -> str:
    """Return a table of all known data sets and of those of the config."""
    references = list(dict.fromkeys([*BUILT_IN, *SOURCES, *expand(config.datasets)]))
    folder = Path(config.data) if config.data else None
    lines = [_line(reference, folder) for reference in references]
    there = sum(line[3] != "missing" for line in lines)
    table = tabulate(lines, TITLES, tablefmt="plain", disable_numparse=True)
    where = f"in {config.data}" if config.data else "without data=FOLDER"
    return f"{table}\n{there} of {len(lines)} data sets are there ({where})"


def _line(reference: str, folder: Path | None) -> tuple[str, ...]:
    metric = SOURCES[reference].metric if reference in SOURCES else BUILT_IN.get(reference, "")
    try:
        found = load_dataset(reference, folder)
    except (AbsentSetError, ConfigError) as error:
        return name_of(reference), reference, metric, "missing", str(error)
    counts = " / ".join(f"{len(split):,}" for split in found.splits.values())
    return found.name, reference, found.metric, counts, ""
