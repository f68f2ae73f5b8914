"""Sinkhorn-Knopp: soft assignments of tokens to prototypes that use every prototype equally.

Source: SwAV's and DINOv2's centring, which the paper uses for iBOT. Deliberate difference: it runs
in the log domain, where exp(logit / 0.04) cannot overflow, and the whole state is one potential per
prototype. Tokens are read in chunks, and ranks exchange two vectors of K numbers per iteration,
however many tokens they have.
"""

from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist
from torch import Tensor

from trainer import distributed
from trainer.losses import fused

ShiftedLogits = Callable[[Tensor], Iterable[Tensor]]
"""From potentials [K] to this rank's logits / temperature - potentials [t, K], chunk by chunk."""


def sinkhorn_knopp(
    logits: Tensor,
    *,
    temperature: float,
    iterations: int = 3,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Return targets for tokens: each row a distribution, all prototypes used about equally.

    Args:
        logits: [T, K], similarities of this rank's tokens and the prototypes; T may differ between
            ranks and may be 0.
        temperature: Divides the logits (paper: 0.04 rising to 0.07).
        iterations: Alternations of normalising prototypes, then tokens (paper: 3).
        group: Ranks whose tokens are balanced together; None is only this process.

    Returns:
        [T, K] in at least float32; rows sum to 1. No gradient flows.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    scaled = logits.detach().to(dtype) / temperature
    potentials = prototype_potentials(
        lambda potentials: [scaled - potentials],
        scaled.new_zeros(scaled.shape[1]),
        iterations=iterations,
        group=group,
    )
    return (scaled - potentials).softmax(dim=1)


@torch.no_grad()
def prototype_potentials(
    shifted_logits: ShiftedLogits,
    potentials: Tensor,
    *,
    iterations: int,
    group: dist.ProcessGroup | None = None,
    compiled: bool = False,
) -> Tensor:
    """Return the logarithms of the divisors of the prototypes' columns after `iterations`.

    The targets are then the softmax over prototypes of logits / temperature - potentials.

    Args:
        shifted_logits: Function that yields this rank's logits; chunks may have no rows.
        potentials: [K], zeros in at least float32.
        iterations: Number of alternations; with 0 the targets are a plain softmax.
        group: Ranks whose tokens are balanced together; None is only this process.
        compiled: Compile the sums of a chunk.

    Returns:
        [K].
    """
    for iteration in range(iterations):
        # The last alternation has normalised the rows at its end.
        sums = _column_sums_of_softmax if iteration else _column_sums
        columns = torch.full_like(potentials, -torch.inf)
        for logits in shifted_logits(potentials):
            if len(logits):
                columns = torch.logaddexp(columns, fused.run(sums, (logits,), compiled=compiled))
        potentials = potentials + _logsumexp_over_ranks(columns, group)
    return potentials


def _column_sums(logits: Tensor) -> Tensor:
    """Return the logarithms [K] of the sums over tokens of exp(logits [t, K])."""
    # `logsumexp` in a form that the compiler computes in one pass over the logits.
    highest = logits.amax(dim=0, keepdim=True)
    sums = (logits - highest).exp_().sum(dim=0, keepdim=True)
    return (highest + sums.log()).squeeze(0)


def _column_sums_of_softmax(logits: Tensor) -> Tensor:
    """Return the logarithms [K] of the sums over tokens of the row softmax of logits [t, K]."""
    return _column_sums(logits.log_softmax(dim=1))


def _logsumexp_over_ranks(values: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    if group is None:
        return values
    highest = distributed.all_reduce(values.clone(), dist.ReduceOp.MAX, group)
    # If no rank has a token, the sum is 0 and its logarithm -inf; -inf - -inf would be NaN.
    highest = highest.nan_to_num(neginf=0.0)
    total = distributed.all_reduce((values - highest).exp(), group=group)
    return highest + total.log()
