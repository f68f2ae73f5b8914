"""Commands in processes of their own that start without the imports.

A test that kills a dozen processes would spend most of its time on importing Beam and torch. Here a
process is forked from one that has imported them and has done nothing else.
"""

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch

from tests.support.paths import ROOT

IMPORTED_ONCE = [
    "apache_beam.runners.portability.fn_api_runner",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
    "gcsfs",
    "openai",
    "pipelines.captions",
    "pipelines.curate",
    "pipelines.images",
    "pipelines.runner",
    "torch.distributed.run",
    "trainer.training.session",
]
"""Modules that a process finds imported; not those that are run as commands."""


def warm_context() -> multiprocessing.context.ForkServerContext:
    """Return the context whose processes find `IMPORTED_ONCE` imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED_ONCE)
    return context


class WarmProcess:
    """`python -m MODULE ARGUMENTS` in a real process, with the interface of `subprocess.Popen`.

    Its environment is that of this process and `environment`, its folder the repository's.
    """

    def __init__(
        self, module: str, *arguments: str, environment: Mapping[str, str] | None = None
    ) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._outputs = [Path(self._folder.name, name) for name in ("stdout", "stderr")]
        self._process = warm_context().Process(
            target=_run,
            args=(
                [module, *arguments],
                {**os.environ, **(environment or {})},
                [str(path) for path in self._outputs],
            ),
        )
        self._process.start()

    @property
    def pid(self) -> int:
        """Number of the process."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit code, or minus the number of the signal that ended it; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """Return the exit code, None while the process runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; return the exit code."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout or 0.0)
        return self._process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end; return what the process wrote to standard output and error."""
        self.wait(timeout)
        output, errors = (path.read_text() for path in self._outputs)
        return output, errors

    def send_signal(self, number: int) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it with SIGKILL."""
        self._process.kill()


def _run(command: list[str], environment: Mapping[str, str], outputs: list[str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    for number, path in enumerate(outputs, start=1):
        file = os.open(path, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    if "OMP_NUM_THREADS" in environment:  # OpenMP has read the environment at its import.
        torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    sys.argv = command
    try:
        runpy.run_module(command[0], run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
