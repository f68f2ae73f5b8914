"""Weighted sums of row losses, computed in chunks of rows to save memory.

The rows are compared with a large shared matrix (keys, prototypes), so the logits would be a matrix
of all rows by all shared rows. Here a chunk of logits exists only until its value and gradient are
computed, both in the forward pass. Nothing is computed twice: the backward pass only scales the
stored gradients.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

RowLosses = Callable[[Tensor, slice], tuple[Tensor, Tensor]]
"""From the logits [n, M] of a chunk and the slice of its rows to the losses [n] of the rows and
their gradients [n, M] with respect to the logits."""


def sum_in_chunks(
    losses: RowLosses, rows: Tensor, shared: Tensor, weights: Tensor, chunk_size: int | None
) -> Tensor:
    """Return the weighted sum of the losses of all rows.

    It can be differentiated once, with respect to the rows and the shared matrix.

    Args:
        losses: Function of the logits `rows @ shared.T`; the loss of a row must not depend on other
            rows.
        rows: [N, D]; with N = 0 the sum and both gradients are 0.
        shared: [M, D], same dtype.
        weights: [N], same dtype, without gradient.
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
            # Weighting the narrow factors saves a pass over the slopes.
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
