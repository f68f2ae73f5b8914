"""The demo in small, for tests: the Makefile's own commands with fewer captions and steps."""

import shlex
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import webdataset

from tests.support.paths import ROOT

SMALLER = {
    "pipelines captions": ["num_captions=24", "captions_per_shard=12"],
    "pipelines curate": ["num_captions=24", "captions_per_shard=12"],
    "pipelines images": ["captions_per_shard=6"],
    "trainer.train": ["steps=4", "optim.warmup=1", "captions_per_batch=8"],
    "trainer.evaluate": ["num_untrained=1"],
    "pipelines report": [],
}
"""Part of a command -> overrides that make it small."""


def demo_commands(run: Path) -> list[list[str]]:
    """What `make demo` runs, made small."""
    printed = subprocess.run(
        ["make", "--no-print-directory", "-n", "demo", f"RUN={run}"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    commands = []
    for line in printed.splitlines():
        for part, overrides in SMALLER.items():
            if f"-m {part}" in line:
                words = shlex.split(line)
                commands.append([sys.executable, *words[1:], *overrides])
    assert len(commands) == len(SMALLER), printed
    return commands


def prompts(run: Path) -> dict[int, tuple[str, ...]]:
    """What each ordinal was asked for, of the captions that came of it."""
    rows = [
        row
        for path in sorted((run / "captions-raw/shards").rglob("*.parquet"))
        for row in pq.read_table(path).to_pylist()
    ]
    columns = ("concept", "source", "template", "background", "relation")
    return {row["ordinal"]: tuple(str(row[column]) for column in columns) for row in rows}


def images(run: Path) -> dict[str, tuple[bytes, ...]]:
    """Caption text -> its images."""
    paths = [str(path) for path in sorted((run / "images/shards").rglob("*.tar"))]
    samples = webdataset.WebDataset(paths, shardshuffle=False)
    return {
        sample["txt"].decode(): tuple(sample[f"{number}.jpg"] for number in range(4))
        for sample in samples
    }
