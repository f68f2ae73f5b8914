"""Batch jobs in a process with a fault at a chosen point.

    python -m tests.support.fault_process FAULT STAGE CONFIG [key=value ...]

FAULT is a name of `FAULTS` and its argument, which is the number of the time at which it
strikes, or a folder: `kill_while_painting:3`. Images are black and white blocks that are made of
caption and seed (`tests.support.block_engine`), unless the name ends in `tiny_sd`.
"""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.support.block_engine import BlockEngine
from transforms.core import storage, tar_shards
from transforms.engines.image.base import Painted


class BlockSpec:
    """Replacement of the diffusion model's spec, with the same arguments."""

    def __init__(self, *arguments: object) -> None:
        pass

    def open(self) -> "Blocks":
        return Blocks(4)


class Blocks(BlockEngine):
    """The engine; all batches pass through its `paint`, where faults strike."""

    def paint(self, texts: Sequence[str], seeds: Sequence[int]) -> Painted:
        return super().paint(texts, seeds)


def strike(owner: Any, name: str, fault: Callable[[], None], when: str, nth: int, of: str) -> None:
    """Replace a function by one that runs `fault` in one of its calls.

    Args:
        owner: Module or class that holds the function.
        name: Name of the function.
        fault: What happens.
        when: "before" or "after" the call.
        nth: Number of the call, from 1. Only calls with `of` in a string argument count.
        of: Part of an argument; "" counts every call.
    """
    function = getattr(owner, name)
    calls = 0

    def wrapped(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        counts = any(of in argument for argument in arguments if isinstance(argument, str))
        calls += counts or not of
        strikes = calls == nth and (counts or not of)
        if strikes and when == "before":
            fault()
        result = function(*arguments, **named)
        if strikes and when == "after":
            fault()
        return result

    setattr(owner, name, wrapped)


def kill() -> None:
    """Kill this process with SIGKILL, as if the machine were lost."""
    os.kill(os.getpid(), signal.SIGKILL)


def terminate() -> None:
    """As a job manager does."""
    os.kill(os.getpid(), signal.SIGTERM)


def interrupt() -> None:
    """As Ctrl-C does."""
    os.kill(os.getpid(), signal.SIGINT)


def terminate_while_painting(number: str) -> None:
    strike(Blocks, "paint", terminate, "before", int(number), "")


def interrupt_while_painting(number: str) -> None:
    strike(Blocks, "paint", interrupt, "before", int(number), "")


def kill_while_painting(number: str) -> None:
    strike(Blocks, "paint", kill, "before", int(number), "")


def kill_while_painting_tiny_sd(number: str) -> None:
    from transforms.engines.image.diffusers import DiffusersEngine

    strike(DiffusersEngine, "paint", kill, "before", int(number), "")


def none(_: str) -> None:
    """Run without a fault."""


def none_tiny_sd(_: str) -> None:
    """Run the real model without a fault."""


def run_out_of_memory_tiny_sd(largest: str) -> None:
    """Raise an out-of-memory error for batches of more than `largest` images."""
    import torch

    from transforms.engines.image.diffusers import DiffusersEngine

    paint = DiffusersEngine._paint

    def limited(engine: DiffusersEngine, texts: Sequence[str], seeds: Sequence[int]) -> Painted:
        if engine.batch_size > int(largest):
            raise torch.OutOfMemoryError("out of memory")
        return paint(engine, texts, seeds)

    DiffusersEngine._paint = limited  # type: ignore[assignment, method-assign]


def kill_while_writing(number: str) -> None:
    strike(tar_shards, "image_set_sample", kill, "before", int(number), "")


def kill_while_publishing(number: str) -> None:
    """Kill while the complete file has a temporary name."""
    strike(os, "link", kill, "before", int(number), ".tar")


def kill_between_shard_and_commit(number: str) -> None:
    strike(storage, "publish_file", kill, "after", int(number), ".tar")


def kill_after_commit(number: str) -> None:
    strike(storage, "publish_bytes", kill, "after", int(number), "/commits/")


def kill_before_index(number: str) -> None:
    strike(storage, "replace_bytes", kill, "before", int(number), "index.parquet")


def kill_while_writing_index(number: str) -> None:
    strike(os, "replace", kill, "before", int(number), "index.parquet")


def kill_between_index_and_success(number: str) -> None:
    strike(storage, "replace_bytes", kill, "after", int(number), "index.parquet")


def kill_while_deleting(number: str) -> None:
    strike(storage, "delete", kill, "after", int(number), "/")


def hang(number: str) -> None:
    strike(Blocks, "paint", lambda: time.sleep(3600), "before", int(number), "")


def meet(folder: str) -> None:
    """Let two workers that finish the same shard publish it at the same moment."""

    def wait() -> None:
        Path(folder, f"worker-{os.getpid()}").touch()
        deadline = time.monotonic() + 120
        while len(list(Path(folder).glob("worker-*"))) < 2:
            assert time.monotonic() < deadline, "the other worker never came"
            time.sleep(0.001)

    strike(storage, "publish_file", wait, "before", 1, ".tar")


FAULTS = {
    fault.__name__: fault
    for fault in (
        none,
        none_tiny_sd,
        terminate_while_painting,
        interrupt_while_painting,
        kill_while_painting,
        kill_while_painting_tiny_sd,
        run_out_of_memory_tiny_sd,
        kill_while_writing,
        kill_while_publishing,
        kill_between_shard_and_commit,
        kill_after_commit,
        kill_before_index,
        kill_while_writing_index,
        kill_between_index_and_success,
        kill_while_deleting,
        hang,
        meet,
    )
}


def main() -> None:
    import gcsfs.retry

    import pipelines.images
    from pipelines.__main__ import entry

    wait = asyncio.sleep

    async def short_wait(seconds: float) -> None:
        await wait(seconds / 100)

    gcsfs.retry.asyncio = SimpleNamespace(sleep=short_wait)
    fault, *arguments = sys.argv[1:]
    name, _, argument = fault.partition(":")
    if not name.endswith("tiny_sd"):
        vars(pipelines.images)["ImageEngineSpec"] = BlockSpec
    FAULTS[name](argument)
    sys.argv[1:] = arguments
    entry()


if __name__ == "__main__":
    # In a script, classes belong to `__main__`, where Beam's workers would not find them.
    from tests.support import fault_process as faulty

    faulty.main()
