"""Weighted sums of row losses that are too large to hold whole: value and gradient by chunks.

A loss whose rows meet a large shared matrix (keys, prototypes) has a matrix of logits, rows by that
many columns. Here each chunk of it lives only until the chunk's value and gradient are known, in
the forward pass: nothing is kept and nothing computed twice. The backward pass scales what is
there.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

RowLosses = Callable[[Tensor, slice], tuple[Tensor, Tensor]]
"""From the logits [n, M] of a chunk of the rows, and which rows these are, to each row's loss [n]
and its gradient in the row's logits [n, M]."""


def sum_in_chunks(
    losses: RowLosses, rows: Tensor, shared: Tensor, weights: Tensor, chunk_size: int | None
) -> Tensor:
    """The weighted sum of the losses of all rows, differentiable (once) in rows and shared matrix.

    Args:
        losses: Of the logits `rows @ shared.T`; a row's must not depend on other rows.
        rows: [N, D]; with N = 0 the sum is 0 and so are both gradients.
        shared: [M, D], of the same type.
        weights: [N], of the same type, without gradient.
        chunk_size: Rows at a time; None takes all at once.
    """
    with torch.autocast(rows.device.type, enabled=False):
        total: Tensor = _SumInChunks.apply(
            losses, chunk_size or max(len(rows), 1), rows, shared, weights
        )
    return total


class _SumInChunks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, losses: RowLosses, chunk_size: int, rows: Tensor, shared: Tensor, weights: Tensor
    ) -> Tensor:
        of_rows, of_shared = (
            torch.zeros_like(tensor) if needed else None
            for tensor, needed in zip((rows, shared), ctx.needs_input_grad[2:4], strict=True)
        )
        total = rows.new_zeros(())
        for start in range(0, len(rows), chunk_size):
            chunk = slice(start, start + chunk_size)
            values, slopes = losses(rows[chunk] @ shared.T, chunk)
            total += (weights[chunk] * values).sum()
            # Weighing the narrow factors spares a pass over the slopes.
            weight = weights[chunk, None]
            if of_rows is not None:
                of_rows[chunk] = weight * (slopes @ shared)
            if of_shared is not None:
                of_shared.addmm_(slopes.T, weight * rows[chunk])
            del slopes  # The next chunk needs the memory.
        ctx.save_for_backward(of_rows, of_shared)
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        gradients = (None if value is None else outer[0] * value for value in ctx.saved_tensors)
        return (None, None, *gradients, None)
