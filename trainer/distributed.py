"""Communication between the processes of one training, and what each does alone.

Every function works without a process group, as one process. How gradients are averaged is said in
`trainer.execution`.
"""

import contextlib
import datetime
import re
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Group = dist.ProcessGroup
T = TypeVar("T")

START_TIMEOUT_S = 1800.0
"""Patience with other ranks until `expect_answers_within`: some compile or fetch data longer."""
HEARTBEAT_S = 10.0
"""Seconds between two signs of life to ranks that wait for a long piece of work."""

LETTING_GO_S = 0.2
"""Seconds in which gloo's threads give back the last tensors, for which they need Python's lock.
DDP's reducer, freed with an error that holds it, would wait for those threads with that lock."""


class LostRankError(RuntimeError):
    """Another process of the training is gone or silent; the message is a sentence."""


def start(device: torch.device) -> None:
    """Join the processes that `torchrun` started (their addresses are in the environment)."""
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=datetime.timedelta(seconds=START_TIMEOUT_S))


def expect_answers_within(seconds: float) -> None:
    """From now on, take a rank that does not answer for so long for lost."""
    if is_on():
        # Torch has no public name for it yet.
        dist.distributed_c10d._set_pg_timeout(datetime.timedelta(seconds=seconds))


def stop() -> None:
    """Leave the group, if there is one; the others must leave, too: NCCL may wait for them."""
    if dist.is_initialized():
        dist.destroy_process_group()
        time.sleep(LETTING_GO_S)


def abort() -> None:
    """Leave the group, if there is one, whatever the others do."""
    if dist.is_initialized():
        # Torch has no public name for it yet.
        dist.distributed_c10d._abort_process_group()
        time.sleep(LETTING_GO_S)


def is_on() -> bool:
    """Whether this process is one of a group."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Number of this process, 0 when alone."""
    return dist.get_rank() if is_on() else 0


def world_size() -> int:
    """Number of processes, 1 when alone."""
    return dist.get_world_size() if is_on() else 1


def ranks_on_machine() -> int:
    """Number of processes on this machine; all ranks must ask together."""
    host = socket.gethostname()
    return gather_objects(host).count(host)


def first_rank_here() -> int:
    """The first rank of this machine, as `torchrun` numbers them; elsewhere the rank itself."""
    return rank() - dist.get_node_local_rank(fallback_rank=0) if is_on() else 0


def world_group() -> Group | None:
    """The group of all processes, None when alone."""
    return dist.group.WORLD if is_on() else None


def all_reduce(
    tensor: Tensor, operation: Any = dist.ReduceOp.SUM, group: Group | None = None
) -> Tensor:
    """Reduce in place over the ranks (of a group), without gradient; returns its argument."""
    if is_on():
        with _talking():
            dist.all_reduce(tensor, op=operation, group=group)
    return tensor


def any_rank(*flags: bool) -> list[bool]:
    """For each flag, whether it is set on any rank; every rank gets the same answers.

    The ranks' hosts talk about it; no device is waited for.
    """
    if not is_on():
        return list(flags)
    packed = torch.tensor(flags, dtype=torch.int32)
    return [bool(flag) for flag in all_reduce(packed, dist.ReduceOp.MAX).tolist()]


def gather_objects(value: Any) -> list[Any]:
    """A small value of every rank, in rank order, on every rank."""
    if not is_on():
        return [value]
    values: list[Any] = [None] * world_size()
    with _talking():
        dist.all_gather_object(values, value)
    return values


def run_on_all_ranks(work: Callable[[], T]) -> T:
    """Do a piece of work that takes ranks unequally long, and return when all have done theirs.

    However long that is: they tell each other meanwhile that they are there. The work itself must
    not communicate.

    Raises:
        LostRankError: It raised an error on another rank; this one's own error is raised as it is.
    """
    if not is_on():
        return work()
    with ThreadPoolExecutor(1, "work") as thread:
        mine = thread.submit(work)
        while any(any_rank(not wait([mine], HEARTBEAT_S).done)):
            pass
    error = mine.exception()
    failures = gather_objects(None if error is None else str(error))
    if error is not None:
        raise error
    for number, failure in enumerate(failures):
        if failure is not None:
            raise lost(RuntimeError(f"rank {number}: {failure}"))
    return mine.result()


@contextlib.contextmanager
def _talking() -> Iterator[None]:
    """Say in a sentence that the others do not answer; gloo has no exception of its own for it."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise lost(error) from error


def is_lost(error: BaseException) -> bool:
    """Whether torch says that the others do not answer.

    NCCL's errors have a class; gloo's, where no function of ours calls it (in the backward pass),
    are `RuntimeError`s that begin with the place in its sources.
    """
    return isinstance(error, dist.DistError) or (
        type(error) is RuntimeError and "/gloo/" in str(error)
    )


def lost(error: BaseException) -> LostRankError:
    """What torch says when the others do not answer, as a sentence."""
    reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
    reason = re.sub(r"\[[^]]*/gloo/[^]]*\] ?", "", reason)  # The place in its sources.
    reason = reason.partition(". ")[0]  # Gloo goes on with guesses.
    return LostRankError(
        f"rank {rank()} lost the others ({reason}); the launcher says which rank died"
    )


def gather(tensor: Tensor) -> Tensor:
    """Rows of every rank, in rank order, with the gradient of each rank's loss.

    The backward pass adds up what every rank's loss says about this rank's rows, so that averaging
    parameter gradients over the ranks afterwards gives the gradient of the mean loss.

    Args:
        tensor: [N, ...], of the same shape on every rank.

    Returns:
        [world size * N, ...].
    """
    if not is_on():
        return tensor
    gathered: Tensor = _Gather.apply(tensor)
    return gathered


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum over the ranks, differentiable: its gradient is summed over the ranks, too."""
    if not is_on():
        return tensor
    total: Tensor = _Sum.apply(tensor)
    return total


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        pieces = [torch.empty_like(tensor) for _ in range(world_size())]
        with _talking():
            dist.all_gather(pieces, tensor.contiguous())
        return torch.cat(pieces)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = all_reduce(gradients[0].contiguous().clone())
        return total.chunk(world_size())[rank()]


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return all_reduce(tensor.clone())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return all_reduce(gradients[0].contiguous().clone())
