"""Beam's portable runner as with Flink: a job service (Prism) and an external pool of workers."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.processes import descendants

PRISM = ROOT / ".cache" / "bin" / "prism"

needs_prism = pytest.mark.skipif(
    not PRISM.exists(), reason="Beam's portable runner is not built: `make prism` (needs Go)"
)


@dataclass(frozen=True)
class WorkerPool:
    """A running pool of SDK workers.

    Attributes:
        pid: Process of the pool.
        flags: Flags that send a job to it.
    """

    pid: int
    flags: list[str]

    def kill_workers(self) -> int:
        """Kill the workers that the pool has started, as if lost; return their number."""
        workers = descendants(self.pid)
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
        return len(workers)


@contextlib.contextmanager
def worker_pool(log: Path) -> Iterator[WorkerPool]:
    """Run a pool of SDK workers in other processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # The pool starts its workers as `python`, in its working folder.
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    command = [
        sys.executable, "-m", "apache_beam.runners.worker.worker_pool_main",
        f"--service_port={port}",
    ]  # fmt: skip
    with log.open("wb") as output:
        pool = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
        try:
            _wait_for(port)
            flags = [
                "--runner=PrismRunner",
                f"--prism_location={PRISM}",
                "--environment_type=EXTERNAL",
                f"--environment_config=localhost:{port}",
            ]
            yield WorkerPool(pool.pid, flags)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pool.pid, 9)
            pool.wait()


def _wait_for(port: int) -> None:
    for _ in range(600):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError(f"the worker pool does not listen on port {port}")
