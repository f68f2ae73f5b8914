"""Trainings over several machines: on this one, each machine is a launcher with one rank."""

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.support.warm_process import WarmProcess


def children(pid: int) -> list[int]:
    """Return the running children of a process."""
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(number) for number in listed.split()]


def ranks_of(launcher: int) -> dict[int, int]:
    """Return the ranks that a launcher has started: rank -> process."""
    ranks: dict[int, int] = {}
    for pid in children(launcher):
        with contextlib.suppress(OSError):
            names = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            ranks |= {int(name[5:]): pid for name in names if name.startswith(b"RANK=")}
    return ranks


def wait_for_rank(launcher: WarmProcess) -> int:
    """Return the process of the rank of a launcher, as soon as it exists."""
    while True:
        for pid in ranks_of(launcher.pid).values():
            return pid
        assert launcher.poll() is None, launcher.communicate()[1]
        time.sleep(0.02)


def wait_until_idle(pid: int, seconds: float = 3.0) -> None:
    """Return once a process has not computed anything for some seconds."""
    used, since = "", time.monotonic()
    while time.monotonic() - since < seconds:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        if used != (used := " ".join(fields[11:13])):  # utime and stime
            since = time.monotonic()
        time.sleep(0.1)


@contextlib.contextmanager
def machines(
    run: Path,
    *overrides: Sequence[str],
    module: Sequence[str] = ("trainer.train",),
) -> Iterator[list[WarmProcess]]:
    """Start a training over several machines; kill at the end what is left of it.

    Args:
        run: Folder of the run, with `train.yaml`.
        overrides: Settings of each machine.
        module: Module that trains, and arguments before those of the training.
    """
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    launchers = [
        WarmProcess(
            *("trainer.launch", f"--nnodes={len(overrides)}", f"--node-rank={number}"),
            *("--master-addr=localhost", f"--master-port={port}", "--nproc-per-node=1"),
            *("-m", *module, str(run / "train.yaml"), *settings),
            environment={"OMP_NUM_THREADS": "1"},
        )
        for number, settings in enumerate(overrides)
    ]
    try:
        yield launchers
    finally:
        for launcher in launchers:
            if launcher.poll() is None:
                for pid in (*ranks_of(launcher.pid).values(), launcher.pid):
                    os.kill(pid, signal.SIGKILL)
            launcher.communicate()
