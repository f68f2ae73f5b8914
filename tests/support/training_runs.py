"""Trainings on small data: start them, stop them and compare their results."""

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch._C._distributed_c10d import TCPStore

from tests.support.image_shards import TINY_TRAINING, write_images
from tests.support.warm_process import WarmProcess
from trainer import train
from trainer.checkpoints.files import list_checkpoints, load_checkpoint


def write_config(run: Path, **changes: Any) -> str:
    """Write `train.yaml` to a run's folder; return its path. `changes` are other top-level keys."""
    path = run / "train.yaml"
    run.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({**TINY_TRAINING, "run": str(run), **changes}))
    return str(path)


def make_run(run: Path) -> Path:
    """Write images and a config to a run's folder; return it."""
    write_images(run / "images")
    write_config(run)
    return run


def command(run: Path, *overrides: str) -> int:
    """Run the training command in this process; return its exit code."""
    return train.main([str(run / "train.yaml"), *overrides])


def start(
    run: Path, *overrides: str, ranks: int = 1, module: Sequence[str] = ("trainer.train",)
) -> WarmProcess:
    """Start the training command, or another module with its arguments, in other processes.

    The launcher of several ranks starts them as it always does, so they import torch.
    """
    command = [*module, str(run / "train.yaml"), *overrides]
    if ranks > 1:
        command = ["trainer.launch", "--standalone", f"--nproc-per-node={ranks}", "-m", *command]
    return WarmProcess(*command, environment={"OMP_NUM_THREADS": "1"})


def wait_for_checkpoint(process: WarmProcess, run: Path, step: int) -> None:
    """Wait until a training has written a checkpoint of this step or a later one."""
    while max(list_checkpoints(checkpoints(run)), default=0) < step:
        time.sleep(0.02)
        assert process.poll() is None, process.communicate()[1]


def checkpoints(run: Path) -> str:
    """Return the folder of a run's checkpoints."""
    return str(run / "train" / "checkpoints")


def meeting_point() -> TCPStore:
    """Return the store where two ranks meet; keep it, and pass its port to `is_rank`."""
    return TCPStore("localhost", 0, is_master=True, wait_for_workers=False)


def is_rank(rank: int, port: int) -> None:
    """Make this process one of two ranks, as the launcher does."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}
    os.environ |= {"MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}


def final_state(run: Path, step: int = 4) -> dict[str, Any]:
    """Return the state in the checkpoint of a step."""
    return load_checkpoint(list_checkpoints(checkpoints(run))[step])


def flat(state: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested state as a dict with dotted names."""
    values: dict[str, Any] = {}
    items = state.items() if isinstance(state, dict) else enumerate(state)
    for key, value in items:
        if isinstance(value, dict | list):
            values.update(flat(value, f"{prefix}{key}."))  # type: ignore[arg-type]
        else:
            values[f"{prefix}{key}"] = value
    return values


def assert_bitwise_equal(first: Path, second: Path, step: int = 4) -> None:
    """Check that the checkpoints of two runs agree in every bit, apart from their configs."""
    states = [flat(final_state(run, step)) for run in (first, second)]
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, states[1][name]), name
        elif not name.startswith("config."):
            assert value == states[1][name], name


def losses(run: Path) -> list[tuple[int, float]]:
    """Return (step, loss) of each line of `metrics.jsonl`."""
    lines = (run / "train" / "metrics.jsonl").read_text().splitlines()
    return [(row["step"], row["loss"]) for row in map(json.loads, lines)]
