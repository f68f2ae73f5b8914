"""Sinkhorn-Knopp: soft assignments of tokens to prototypes that use every prototype equally.

Source: SwAV's and DINOv2's centring, which the paper uses for iBOT. Deliberate
difference: everything happens in the log domain, where exp(logit / 0.04) cannot overflow, and the
whole state is one potential per prototype. Tokens are only ever seen in chunks, and ranks exchange
two vectors of that length per iteration, however many tokens each of them has.
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
    """Targets for tokens: each row a distribution, each prototype about equally used.

    Args:
        logits: [T, K], the similarities of this rank's tokens and the prototypes; T may differ
            between ranks and may be 0.
        temperature: Divides the logits (paper: 0.04 rising to 0.07).
        iterations: Alternations of normalising prototypes, then tokens (paper: 3).
        group: Ranks whose tokens are balanced together; None is this process alone.

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
    """The logarithm of what divides each prototype's column after `iterations` alternations.

    The targets are then the softmax over prototypes of logits / temperature - potentials.

    Args:
        shifted_logits: Gives this rank's logits; chunks may have no rows.
        potentials: [K], zeros in at least float32.
        iterations: Alternations; with 0 the targets are a plain softmax.
        group: As in `sinkhorn_knopp`.
        compiled: Compile the sums of a chunk.

    Returns:
        [K].
    """
    for iteration in range(iterations):
        # Rows were normalised at the end of the last alternation.
        sums = _column_sums_of_softmax if iteration else _column_sums
        columns = torch.full_like(potentials, -torch.inf)
        for logits in shifted_logits(potentials):
            if len(logits):
                columns = torch.logaddexp(columns, fused.run(sums, (logits,), compiled=compiled))
        potentials = potentials + _logsumexp_over_ranks(columns, group)
    return potentials


def _column_sums(logits: Tensor) -> Tensor:
    """Logarithms [K] of the sums over tokens of exp(logits [t, K])."""
    # `logsumexp` in the form that a compiler knows to take in one reading.
    highest = logits.amax(dim=0, keepdim=True)
    sums = (logits - highest).exp_().sum(dim=0, keepdim=True)
    return (highest + sums.log()).squeeze(0)


def _column_sums_of_softmax(logits: Tensor) -> Tensor:
    """Logarithms [K] of the sums over tokens of the softmax over prototypes of logits [t, K]."""
    return _column_sums(logits.log_softmax(dim=1))


def _logsumexp_over_ranks(values: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    if group is None:
        return values
    highest = distributed.all_reduce(values.clone(), dist.ReduceOp.MAX, group)
    # Where no rank has a token the sum is 0 and its logarithm -inf, but -inf - -inf is a NaN.
    highest = highest.nan_to_num(neginf=0.0)
    total = distributed.all_reduce((values - highest).exp(), group=group)
    return highest + total.log()
