"""Reaction of job managers to the exit codes."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.support.paths import ROOT

MANUAL = ROOT / "docs" / "train.md"
FAKES = {
    "srun": 'highest=0; for CODE in $CODES; do export CODE; "$@"; code=$?; '
    "[ $code -le $highest ] || highest=$code; done; exit $highest",
    "python": "kill -TERM $PPID; sleep 0.05; exit $CODE",
    "scontrol": "touch $1-$2",
}
"""Commands of Slurm, and a launcher that saves when its whole node is stopped."""


@pytest.mark.parametrize(
    ("codes", "again"),
    [("75 75", True), ("75 2", False), ("3 75", False), ("1 75", False), ("0 0", False)],
)
def test_slurm_starts_again_what_every_node_wants_to_be_started_again(
    tmp_path: Path, codes: str, again: bool
) -> None:
    for name, script in FAKES.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    (job,) = re.findall(r"```sh\n(.*?)```", MANUAL.read_text(), re.DOTALL)
    (tmp_path / "stop-7").touch()  # From an earlier start.
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").touch()
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "7", "CODES": codes}
    subprocess.run(["sh", "-c", job], cwd=tmp_path, env=environment, timeout=30, check=False)
    assert (tmp_path / "requeue-7").exists() == again
