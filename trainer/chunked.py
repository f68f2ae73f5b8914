"""Sums of row losses that are too large to hold whole: value and gradient, chunk by chunk.

A loss whose rows meet a large shared matrix (keys, prototypes) makes a matrix of rows by that many
columns. Here each chunk of it lives only until the chunk's value and gradient are known, in the
forward pass: nothing is kept and nothing computed twice. The backward pass scales what is there.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

ChunkLoss = Callable[[Tensor, Tensor, slice], Tensor]
"""From a chunk of the rows, the shared matrix, and which rows these are, to a scalar."""


def sum_in_chunks(loss: ChunkLoss, rows: Tensor, shared: Tensor, chunk_size: int | None) -> Tensor:
    """The sum of `loss` over chunks of the rows, differentiable (once) in rows and shared matrix.

    Args:
        loss: Differentiable; its sum must not depend on how the rows are cut.
        rows: [N, D]; with N = 0 the sum is 0 and so are both gradients.
        shared: [M, D].
        chunk_size: Rows at a time; None takes all at once.
    """
    total: Tensor = _SumInChunks.apply(loss, chunk_size or max(len(rows), 1), rows, shared)
    return total


class _SumInChunks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: ChunkLoss, chunk_size: int, rows: Tensor, shared: Tensor) -> Tensor:
        wanted = ctx.needs_input_grad[2:]
        gradients = [torch.zeros_like(tensor) for tensor in (rows, shared)]
        total = rows.new_zeros(())
        for start in range(0, len(rows), chunk_size):
            chunk = slice(start, start + chunk_size)
            inputs = [
                tensor.detach().requires_grad_(needed)
                for tensor, needed in zip((rows[chunk], shared), wanted, strict=True)
            ]
            with torch.set_grad_enabled(any(wanted)):
                value = loss(inputs[0], inputs[1], chunk)
            total += value.detach()
            targets = [tensor for tensor in inputs if tensor.requires_grad]
            parts = iter(torch.autograd.grad(value, targets) if targets else ())
            if wanted[0]:
                gradients[0][chunk] = next(parts)
            if wanted[1]:
                gradients[1] += next(parts)
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        gradients = zip(ctx.saved_tensors, ctx.needs_input_grad[2:], strict=True)
        return (None, None, *(outer[0] * value if needed else None for value, needed in gradients))
