"""The demo in small, for tests: the Makefile's own commands with fewer captions and steps."""

import shlex
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import webdataset

from tests.support.paths import ROOT

NUM_CAPTIONS = 16
SMALLER = {
    "pipelines captions": [f"num_captions={NUM_CAPTIONS}", "captions_per_shard=8"],
    "pipelines curate": [f"num_captions={NUM_CAPTIONS}", "captions_per_shard=8"],
    "pipelines images": ["captions_per_shard=4"],
    "trainer.train": ["steps=4", "optim.warmup=1", "captions_per_batch=8"],
    "trainer.evaluate": ["num_untrained=1"],
    "pipelines report": [],
}
"""Part of a command -> overrides that make it small."""


def demo_commands(run: Path) -> list[list[str]]:
    """Return the commands of `make demo`, with the overrides of `SMALLER`."""
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


def run_demo(run: Path) -> list[str]:
    """Run the demo; return the output of each command."""
    outputs = []
    for command in demo_commands(run):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        outputs.append(done.stdout + done.stderr)
    return outputs


def prompts(run: Path) -> dict[int, tuple[str, ...]]:
    """Return ordinal -> what its prompt asked for, of all captions of a run."""
    rows = [
        row
        for path in sorted((run / "captions-raw/shards").rglob("*.parquet"))
        for row in pq.read_table(path).to_pylist()
    ]
    columns = ("concept", "source", "template", "background", "relation")
    return {row["ordinal"]: tuple(str(row[column]) for column in columns) for row in rows}


def images(run: Path) -> dict[str, tuple[bytes, ...]]:
    """Return caption text -> its images, of all captions of a run."""
    paths = [str(path) for path in sorted((run / "images/shards").rglob("*.tar"))]
    samples = webdataset.WebDataset(paths, shardshuffle=False)
    return {
        sample["txt"].decode(): tuple(sample[f"{number}.jpg"] for number in range(4))
        for sample in samples
    }
