"""Communication between the processes of one training, and what each does alone.

Every function works without a process group, as one process. Gradients are averaged explicitly
after the backward pass rather than by `DistributedDataParallel`: a rank without a masked image
leaves parameters unused, and the average of what every rank has is exact all the same.
"""

import datetime
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

BUCKET_BYTES = 64 << 20
"""Gradients travel in pieces of about this size, which bounds the extra memory."""

Group = dist.ProcessGroup


def start(device: torch.device, timeout_s: float = 1800.0) -> None:
    """Join the processes that `torchrun` started (their addresses are in the environment)."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=datetime.timedelta(seconds=timeout_s))


def stop() -> None:
    """Leave the group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def is_on() -> bool:
    """Whether this process is one of a group."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Number of this process, 0 when alone."""
    return dist.get_rank() if is_on() else 0


def world_size() -> int:
    """Number of processes, 1 when alone."""
    return dist.get_world_size() if is_on() else 1


def everyone() -> Group | None:
    """The group of all processes, None when alone."""
    return dist.group.WORLD if is_on() else None


def all_reduce(tensor: Tensor, operation: Any = dist.ReduceOp.SUM) -> Tensor:
    """Reduce in place over the ranks, without gradient; returns its argument."""
    if is_on():
        dist.all_reduce(tensor, op=operation)
    return tensor


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set on any rank; every rank gets the same answer."""
    if not is_on():
        return flag
    return bool(all_reduce(torch.tensor(int(flag), device=device), dist.ReduceOp.MAX))


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


def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace every gradient by its mean over the ranks; a missing gradient counts as 0."""
    if not is_on():
        return
    bucket: list[Tensor] = []
    size = 0
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        bucket.append(parameter.grad)
        size += parameter.grad.numel() * parameter.grad.element_size()
        if size >= BUCKET_BYTES:
            _average(bucket)
            bucket, size = [], 0
    if bucket:
        _average(bucket)


def _average(gradients: list[Tensor]) -> None:
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    all_reduce(flat).div_(world_size())
    offset = 0
    for gradient in gradients:
        gradient.copy_(flat[offset : offset + gradient.numel()].view_as(gradient))
        offset += gradient.numel()


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        pieces = [torch.empty_like(tensor) for _ in range(world_size())]
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
