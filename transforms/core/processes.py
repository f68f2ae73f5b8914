"""Child processes that end with their parent, however it ends.

An engine or a runner may start processes of its own. After SIGKILL of their parent they would stay,
with gigabytes of memory and their devices. So a watcher, a small process that is started before
them, records all processes below its parent, and kills those that are left when the parent has
ended. It reads /proc, so it does not matter who starts a process and how. Where there is no /proc,
no watcher is started.

The watcher looks four times a second: a process that its parent starts less than a quarter of a
second before SIGKILL is missed.

This file is also the program of the watcher (`python processes.py PID`). It imports the standard
library only, so that it starts in milliseconds.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from typing import NamedTuple

INTERVAL_S = 0.25
"""Seconds between two looks at the processes."""
KILL_S = 10.0
"""Seconds that killed processes may take to end."""

_PROC = "/proc"
_INIT = 1
"""Id of the process that adopts orphans."""
_watchers: "dict[int, subprocess.Popen[bytes]]" = {}
"""Process id -> its watcher; a process that was forked has none yet."""


def end_children_with_this_process() -> None:
    """Kill the children of this process, and theirs, when this process ends; see above.

    It is called before they are started. Calling it again does nothing.
    """
    pid = os.getpid()
    # All processes of a container end with its first one.
    if pid in _watchers or pid == _INIT or not os.path.isdir(f"{_PROC}/{pid}"):
        return
    # In its own session, no Ctrl-C, Ctrl-Z or hangup of the terminal reaches the watcher. It keeps
    # no output open that a reader could wait for.
    _watchers[pid] = subprocess.Popen(
        [sys.executable, "-I", "-S", os.path.abspath(__file__), str(pid)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,
    )


class _Status(NamedTuple):
    parent: int
    started: bytes
    """Clock ticks from boot to start: with its id, this identifies a process."""
    has_ended: bool


class _Descendants:
    """The processes below a running process, except this one.

    Args:
        root: Id of the process.
    """

    def __init__(self, root: int) -> None:
        self._root = root
        self._seen: set[int] = {os.getpid()}
        self._started: dict[int, bytes] = {}

    def look(self) -> None:
        """Record the processes that were started since the last call; forget those that ended."""
        pids = {int(name) for name in os.listdir(_PROC) if name.isdigit()}
        new = {pid: status for pid in pids - self._seen if (status := _status(pid)) is not None}
        self._seen = (self._seen & pids) | new.keys()
        self._started = {pid: ticks for pid, ticks in self._started.items() if pid in pids}
        family = {self._root, *self._started}
        while True:
            found = {pid for pid in new.keys() - family if new[pid].parent in family}
            if not found:
                return
            family |= found
            self._started |= {pid: new[pid].started for pid in found}

    def kill(self) -> None:
        """Kill all recorded processes and those below them, after the root has ended."""
        self._root = -1  # Another process may have its id by now.
        # First stop them all, so that none of them starts another one meanwhile.
        stopped: set[int] = set()
        self.look()
        while new := self._alive() - stopped:
            _send(new, signal.SIGSTOP)
            stopped |= new
            self.look()
        _send(stopped, signal.SIGKILL)
        deadline = time.monotonic() + KILL_S
        while self._alive() and time.monotonic() < deadline:
            time.sleep(0.02)

    def _alive(self) -> set[int]:
        """Return the ids of the recorded processes that have not ended.

        Trackers of multiprocessing are left out: they end by themselves, after they have deleted
        the shared memory of the processes that were killed.
        """
        alive = set()
        for pid, started in self._started.items():
            status = _status(pid)
            if status is not None and status.started == started and not status.has_ended:
                alive.add(pid)
        return {pid for pid in alive if b"resource_tracker" not in _command(pid)}


def _watch(parent: int) -> None:
    """Wait until the parent of this process has ended, then kill what is left below it.

    Args:
        parent: Id of the process that started this one; for any other, nothing is done.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    descendants = _Descendants(parent)
    descendants.look()
    if parent == _INIT or os.getppid() != parent:
        return
    while os.getppid() == parent:
        descendants.look()
        time.sleep(INTERVAL_S)
    descendants.kill()


def _status(pid: int) -> _Status | None:
    """Return the status of a process, None if there is no such process."""
    try:
        with open(f"{_PROC}/{pid}/stat", "rb") as file:
            # The name of a process is in parentheses and may contain any character.
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return _Status(int(fields[1]), fields[19], fields[0] in b"ZX")


def _command(pid: int) -> bytes:
    try:
        with open(f"{_PROC}/{pid}/cmdline", "rb") as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def _send(pids: set[int], number: int) -> None:
    for pid in pids:
        # It may have ended, or run as another user by now.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


if __name__ == "__main__":
    _watch(int(sys.argv[1]))
