"""Communication between the ranks of a training.

Without a process group every function works as for a single rank. See `trainer.execution` for how
gradients are averaged.
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
"""Timeout of communication until `expect_answers_within`: some ranks compile or download."""
HEARTBEAT_S = 10.0
"""Seconds between two messages to ranks that wait for this one during long work."""

RELEASE_S = 0.2
"""Seconds in which gloo's threads release the last tensors, for which they need Python's lock. A
DDP reducer freed earlier (with an error that holds it) would wait for them and keep that lock."""


class LostRankError(RuntimeError):
    """Another rank is gone or does not answer; the message is one sentence."""


def start(device: torch.device) -> None:
    """Join the process group of the ranks that `torchrun` started; the environment has its address.

    Args:
        device: Device of this rank.

    Raises:
        ValueError: The environment lacks a variable.
    """
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=datetime.timedelta(seconds=START_TIMEOUT_S))


def expect_answers_within(seconds: float) -> None:
    """Set the timeout of communication: a rank that does not answer for so long is lost."""
    if is_on():
        # Torch has no public name for it yet.
        dist.distributed_c10d._set_pg_timeout(datetime.timedelta(seconds=seconds))


def stop() -> None:
    """Leave the process group, if there is one, together with the other ranks.

    All ranks must call this, because NCCL may wait for the others.
    """
    if dist.is_initialized():
        dist.destroy_process_group()
        time.sleep(RELEASE_S)


def abort() -> None:
    """Leave the process group, if there is one, without waiting for other ranks."""
    if dist.is_initialized():
        # Torch has no public name for it yet.
        dist.distributed_c10d._abort_process_group()
        time.sleep(RELEASE_S)


def is_on() -> bool:
    """Return whether this process belongs to a process group."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Return the rank of this process, 0 without a process group."""
    return dist.get_rank() if is_on() else 0


def world_size() -> int:
    """Return the number of ranks, 1 without a process group."""
    return dist.get_world_size() if is_on() else 1


def ranks_on_machine() -> int:
    """Return the number of ranks on this machine; all ranks must call this together."""
    host = socket.gethostname()
    return gather_objects(host).count(host)


def first_rank_here() -> int:
    """Return the first rank of this machine; without `torchrun` the rank itself."""
    return rank() - dist.get_node_local_rank(fallback_rank=0) if is_on() else 0


def world_group() -> Group | None:
    """Return the group of all ranks, None without a process group."""
    return dist.group.WORLD if is_on() else None


def all_reduce(
    tensor: Tensor, operation: Any = dist.ReduceOp.SUM, group: Group | None = None
) -> Tensor:
    """Reduce a tensor in place over the ranks (of a group), without gradient, and return it."""
    if is_on():
        with _translating_errors():
            dist.all_reduce(tensor, op=operation, group=group)
    return tensor


def any_rank(*flags: bool) -> list[bool]:
    """Return for each flag whether it is set on any rank; the result is the same on every rank.

    The hosts communicate, so this does not wait for a device.
    """
    if not is_on():
        return list(flags)
    packed = torch.tensor(flags, dtype=torch.int32)
    return [bool(flag) for flag in all_reduce(packed, dist.ReduceOp.MAX).tolist()]


def gather_objects(value: Any) -> list[Any]:
    """Return a small value of every rank, in rank order, on every rank."""
    if not is_on():
        return [value]
    values: list[Any] = [None] * world_size()
    with _translating_errors():
        dist.all_gather_object(values, value)
    return values


def run_on_all_ranks(work: Callable[[], T]) -> T:
    """Run a function on all ranks and return its result when all ranks are done.

    The ranks may take unequally long, longer than the timeout of communication, because they
    exchange heartbeats meanwhile. All ranks must call this together; the function must not
    communicate.

    Args:
        work: The function; it may differ between the ranks.

    Raises:
        LostRankError: The function raised an error on another rank. An error on this rank is raised
            as it is.
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
            raise lost_rank_error(RuntimeError(f"rank {number}: {failure}"))
    return mine.result()


@contextlib.contextmanager
def _translating_errors() -> Iterator[None]:
    """Raise the errors of torch about lost ranks as `LostRankError`; gloo's have no own class."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise lost_rank_error(error) from error


def is_lost_rank(error: BaseException) -> bool:
    """Return whether an error of torch means that another rank is lost.

    NCCL's errors have a class of their own. Errors of gloo from outside this module (from the
    backward pass) are `RuntimeError`s that begin with a place in gloo's sources.
    """
    return isinstance(error, dist.DistError) or (
        type(error) is RuntimeError and "/gloo/" in str(error)
    )


def lost_rank_error(error: BaseException) -> LostRankError:
    """Return torch's error about a lost rank as one sentence."""
    reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
    reason = re.sub(r"\[[^]]*/gloo/[^]]*\] ?", "", reason)  # A place in gloo's sources.
    reason = reason.partition(". ")[0]  # Gloo adds guesses at the cause.
    return LostRankError(
        f"rank {rank()} lost the others ({reason}); the launcher names the rank that died"
    )


def gather(tensor: Tensor) -> Tensor:
    """Return the rows of all ranks, in rank order; differentiable.

    The gradient of this rank's rows is summed over the losses of all ranks. Averaging parameter
    gradients over the ranks afterwards gives the gradient of the mean loss.

    Args:
        tensor: Rows of this rank, [N, ...]; the shape is the same on every rank.

    Returns:
        [world size * N, ...].
    """
    if not is_on():
        return tensor
    gathered: Tensor = _Gather.apply(tensor)
    return gathered


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Return the sum over the ranks; differentiable, its gradient is also summed over the ranks."""
    if not is_on():
        return tensor
    total: Tensor = _Sum.apply(tensor)
    return total


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        pieces = [torch.empty_like(tensor) for _ in range(world_size())]
        with _translating_errors():
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
