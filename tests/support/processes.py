"""Processes below a process, and whether they still run."""

import time
from pathlib import Path

import pytest

needs_proc = pytest.mark.skipif(
    not Path("/proc/self/task").exists(), reason="looks for processes in /proc"
)


def descendants(pid: int) -> list[int]:
    """All processes below a process, without the trackers of multiprocessing."""
    found = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, children.read_text().split()):
            found += [child, *descendants(child)]
    return [pid for pid in found if "resource_tracker" not in command(pid)]


def command(pid: int) -> str:
    """The command line of a process."""
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


def running(pids: list[int]) -> list[int]:
    """Those of the processes that have not ended."""
    found = []
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state not in "ZX":
            found.append(pid)
    return found


def wait_until_ended(pids: list[int], seconds: float = 20) -> None:
    """Fail if some of the processes still run after a time."""
    deadline = time.monotonic() + seconds
    while left := running(pids):
        assert time.monotonic() < deadline, [(pid, command(pid)) for pid in left]
        time.sleep(0.05)


def shared_memory(pid: int) -> set[Path]:
    """The files of shared memory that a process has open."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    names = {line.partition("/dev/shm/")[2] for line in lines if "/dev/shm/" in line}
    return {Path("/dev/shm", name) for name in names}
