"""A process with children of many kinds, which ends in a chosen way when it is told to.

    python -m tests.support.parent_process SHARED_MEMORY END

It prints "ready", then waits for a line.
"""

import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from multiprocessing.shared_memory import SharedMemory

from transforms.core.processes import end_children_with_this_process

CHILDREN = (
    ["sh", "-c", "sleep 600 & sleep 600"],
    ["setsid", "sleep", "600"],
    ["sh", "-c", "trap '' TERM HUP INT; sleep 600; :"],
)
NUM_PROCESSES = 3 + 1 + 2 + 2
"""Processes below this one, without watcher and tracker: of each of CHILDREN, and two forms of
multiprocessing."""

ENDS = {
    "SIGKILL": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "SIGTERM": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "exit": lambda: os._exit(1),
    "crash": lambda: ctypes.string_at(0),
}


def main(memory: str, end: str) -> None:
    end_children_with_this_process()
    end_children_with_this_process()
    for command in CHILDREN:
        subprocess.Popen(command)
    for method in ("spawn", "fork"):
        context = multiprocessing.get_context(method)
        context.Process(target=time.sleep, args=(600,), daemon=True).start()  # type: ignore[attr-defined]
    shared = SharedMemory(create=True, size=1, name=memory)
    print("ready", flush=True)
    sys.stdin.readline()
    ENDS[end]()
    shared.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
