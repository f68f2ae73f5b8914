"""Functions that run on several ranks: real processes, which talk over gloo."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch.multiprocessing.spawn import start_processes

from tests.support.warm_process import warm_context
from trainer import distributed


def start_ranks(work: Callable[..., None], ranks: int, *arguments: Any) -> None:
    """Run `work(rank, *arguments)` in as many processes as there are ranks, until all are done.

    The processes start without the imports, see `tests.support.warm_process`. They have the
    environment of this process.

    Raises:
        ProcessRaisedException: The function raised on some rank.
        ProcessExitedException: A process ended otherwise.
    """
    warm_context()
    start_processes(
        _in_environment,
        (dict(os.environ), work, *arguments),
        nprocs=ranks,
        start_method="forkserver",
    )


def _in_environment(
    rank: int, environment: Mapping[str, str], work: Callable[..., None], *arguments: Any
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    work(rank, *arguments)


def run_on_ranks(work: Callable[..., Any], ranks: int, folder: Path, *arguments: Any) -> list[Any]:
    """Return what `work(*arguments)` returns on each rank of a process group.

    Args:
        work: A function of a module; what it returns consists of tensors and plain values.
        ranks: Number of ranks.
        folder: An existing folder for the results, for one call.
        arguments: What to call it with.
    """
    start_ranks(_grouped, ranks, ranks, str(folder), work, *arguments)
    return [torch.load(folder / f"rank-{rank}.pt") for rank in range(ranks)]


def _grouped(rank: int, ranks: int, folder: str, work: Callable[..., Any], *arguments: Any) -> None:
    rendezvous = f"file://{folder}/rendezvous"
    torch.distributed.init_process_group(
        "gloo", init_method=rendezvous, rank=rank, world_size=ranks
    )
    torch.save(work(*arguments), f"{folder}/rank-{rank}.pt")
    distributed.stop()
