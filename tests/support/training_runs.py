"""Runs of the training command on the tiny data, and what they leave behind."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch._C._distributed_c10d import TCPStore

from tests.support.image_shards import TINY_TRAINING, write_images
from tests.support.paths import ROOT
from trainer import train
from trainer.checkpoints.files import list_checkpoints, load_checkpoint


def write_config(run: Path, **changes: Any) -> str:
    """Write `train.yaml` in a run's folder."""
    path = run / "train.yaml"
    run.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({**TINY_TRAINING, "run": str(run), **changes}))
    return str(path)


def make_run(run: Path) -> Path:
    """A run with images and a config, ready to be trained."""
    write_images(run / "images")
    write_config(run)
    return run


def command(run: Path, *overrides: str) -> int:
    """Run the command in this process; returns its exit code."""
    return train.main([str(run / "train.yaml"), *overrides])


def start(
    run: Path, *overrides: str, ranks: int = 1, module: Sequence[str] = ("trainer.train",)
) -> "subprocess.Popen[str]":
    """Start the command, or another module and its arguments, in processes of its own."""
    launcher = []
    if ranks > 1:
        launcher = ["-m", "trainer.launch", "--standalone", f"--nproc-per-node={ranks}"]
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", *module, str(run / "train.yaml"), *overrides],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_checkpoint(process: "subprocess.Popen[str]", run: Path, step: int) -> None:
    """Return once a training has written a checkpoint of this step or a later one."""
    while max(list_checkpoints(checkpoints(run)), default=0) < step:
        time.sleep(0.02)
        assert process.poll() is None, process.communicate()[1]


def checkpoints(run: Path) -> str:
    """The folder of a run's checkpoints."""
    return str(run / "train" / "checkpoints")


def meeting_point() -> TCPStore:
    """What ranks meet at, as long as it is held; by its port, see `is_rank`."""
    return TCPStore("localhost", 0, is_master=True, wait_for_workers=False)


def is_rank(rank: int, port: int) -> None:
    """Make this process one of two ranks, as the launcher does, for the commands to come."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}
    os.environ |= {"MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}


def final_state(run: Path, step: int = 4) -> dict[str, Any]:
    """The checkpoint of a step."""
    return load_checkpoint(list_checkpoints(checkpoints(run))[step])


def flat(state: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested state with dotted names."""
    values: dict[str, Any] = {}
    items = state.items() if isinstance(state, dict) else enumerate(state)
    for key, value in items:
        if isinstance(value, dict | list):
            values.update(flat(value, f"{prefix}{key}."))  # type: ignore[arg-type]
        else:
            values[f"{prefix}{key}"] = value
    return values


def assert_bitwise_equal(first: Path, second: Path, step: int = 4) -> None:
    """Weights, teacher and optimiser of two runs are the same to the last bit."""
    states = [flat(final_state(run, step)) for run in (first, second)]
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, states[1][name]), name
        elif not name.startswith("config."):
            assert value == states[1][name], name


def losses(run: Path) -> list[tuple[int, float]]:
    """(step, loss) of every line of metrics."""
    lines = (run / "train" / "metrics.jsonl").read_text().splitlines()
    return [(row["step"], row["loss"]) for row in map(json.loads, lines)]
