"""Commands of a soak: real processes in sessions of their own, each with a time limit."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
TRACEBACKS = ("Traceback (most recent call last)", "Exception in thread", "Exception ignored in")
ORPHANS_S = 20.0
"""Seconds after which the processes that a command has started have to be gone."""


@dataclass(frozen=True)
class Ended:
    """A command that has ended.

    Attributes:
        words: The command, without the interpreter.
        code: Exit code, or minus the signal that ended it.
        said: Last line on standard error or, if there is none, on standard output.
        lines: Lines of its standard output.
        log: File with both.
        has_traceback: True if the log holds a Python traceback.
        orphans: Number of processes that it left behind.
        hung: True if the command was killed at its time limit.
    """

    words: tuple[str, ...]
    code: int
    said: str
    lines: tuple[str, ...]
    log: Path
    has_traceback: bool
    orphans: int
    hung: bool


class Command:
    """`python -m WORDS` in a process of its own.

    Args:
        words: Module and arguments.
        environment: Further environment variables.
        log: File for the command line and its output.
    """

    def __init__(self, words: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.words = tuple(words)
        self._log = log
        self._outputs = [log.with_suffix(".out"), log.with_suffix(".err")]
        with self._outputs[0].open("wb") as out, self._outputs[1].open("wb") as err:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *words],
                cwd=ROOT,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                start_new_session=True,
            )  # fmt: skip
        self.hung = False

    def is_running(self) -> bool:
        """Return whether it has not ended."""
        return self._process.poll() is None

    def has_begun(self) -> bool:
        """Return whether it has printed something: what is imported by then is not repeated."""
        return self._outputs[1].stat().st_size > 0

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process alone, as a job manager does."""
        if self.is_running():
            self._process.send_signal(number)

    def kill(self) -> None:
        """Kill everything that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def end(self, seconds: float) -> Ended:
        """Wait for the end, at most for some seconds; return what it said."""
        try:
            self._process.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            self.hung = True
        orphans = 0 if self.hung else self._wait_for_orphans()
        self.kill()
        out, err = (path.read_text(errors="replace") for path in self._outputs)
        code = self._process.returncode
        shown = " ".join(self.words)
        self._log.write_text(f"$ python -m {shown}\n{out}{err}\n[exit code {code}]\n")
        for path in self._outputs:
            path.unlink()
        spoken = err.strip().splitlines() or out.strip().splitlines()
        return Ended(
            self.words,
            code,
            spoken[-1] if spoken else "",
            tuple(out.splitlines()),
            self._log,
            any(word in out + err for word in TRACEBACKS),
            orphans,
            self.hung,
        )

    def _wait_for_orphans(self) -> int:
        deadline = time.monotonic() + ORPHANS_S
        while left := len(session_members(self._process.pid)):
            if time.monotonic() > deadline:
                break
            time.sleep(0.2)
        return left


def session_members(session: int) -> list[int]:
    """Return the running processes of a session."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(") ")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] not in "ZX":
            found.append(int(path.parent.name))
    return found
