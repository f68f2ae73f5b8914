import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.parent_process import ENDS, NUM_PROCESSES
from tests.support.paths import ROOT
from tests.support.processes import command, descendants, running, wait_until_ended
from transforms.core import processes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture
def bystanders() -> Iterator[list[int]]:
    """A process and its child, in a session of their own."""
    process = subprocess.Popen(["sh", "-c", "sleep 600; :"], start_new_session=True)
    while not descendants(process.pid):
        time.sleep(0.01)
    yield [process.pid, *descendants(process.pid)]
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize("end", ENDS)
def test_all_processes_below_one_end_with_it(bystanders: list[int], end: str) -> None:
    memory = f"synclr-test-{uuid.uuid4().hex}"
    parent = subprocess.Popen(
        [sys.executable, "-m", "tests.support.parent_process", memory, end],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert parent.stdin is not None and parent.stdout is not None
    assert parent.stdout.readline() == b"ready\n"
    time.sleep(3 * processes.INTERVAL_S)
    below = descendants(parent.pid)
    watchers = [pid for pid in below if processes.__file__ in command(pid)]
    assert len(watchers) == 1
    assert len(below) == NUM_PROCESSES + 1
    parent.stdin.write(b"\n")
    parent.stdin.flush()
    assert parent.wait(60) != 0
    wait_until_ended(below)
    assert parent.stdout.read() == b"", "no process keeps the output open"
    deadline = time.monotonic() + 20
    while Path("/dev/shm", memory).exists():
        assert time.monotonic() < deadline, "the tracker deletes shared memory"
        time.sleep(0.05)
    assert running(bystanders) == bystanders


def test_a_watcher_kills_nothing_below_a_process_that_did_not_start_it(
    bystanders: list[int],
) -> None:
    watcher = [sys.executable, processes.__file__, str(bystanders[0])]
    assert subprocess.call(watcher, timeout=60) == 0
    assert running(bystanders) == bystanders
