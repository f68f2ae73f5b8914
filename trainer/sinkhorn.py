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

LogitChunks = Callable[[], Iterable[Tensor]]
"""Gives this rank's logits [t, K] chunk by chunk, anew at each call."""


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
    logits = logits.detach()
    potentials = prototype_potentials(
        lambda: [logits],
        temperature=temperature,
        iterations=iterations,
        group=group,
    )
    return targets_of(logits, potentials, temperature=temperature)


def targets_of(logits: Tensor, potentials: Tensor, *, temperature: float) -> Tensor:
    """The rows that potentials imply: softmax over prototypes of logit / temperature - potential.

    Args:
        logits: [t, K].
        potentials: [K] from `prototype_potentials`.
        temperature: The one that the potentials were made with.
    """
    return (_scaled(logits, temperature) - potentials).softmax(dim=1)


@torch.no_grad()
def prototype_potentials(
    logit_chunks: LogitChunks,
    *,
    temperature: float,
    iterations: int,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """The logarithm of what divides each prototype's column after `iterations` alternations.

    Args:
        logit_chunks: This rank's logits; at least one chunk, which may have no rows.
        temperature: Divides the logits.
        iterations: Alternations; with 0 the targets are a plain softmax.
        group: As in `sinkhorn_knopp`.

    Returns:
        [K], in at least float32.
    """
    potentials: Tensor | None = None
    for _ in range(iterations):
        columns: Tensor | None = None
        for logits in logit_chunks():
            scaled = _scaled(logits, temperature)
            if potentials is not None:  # Rows were normalised at the end of the last alternation.
                scaled = scaled - (scaled - potentials).logsumexp(dim=1, keepdim=True)
            part = scaled.logsumexp(dim=0)  # Of no tokens: -inf.
            columns = part if columns is None else torch.logaddexp(columns, part)
        assert columns is not None, "there is at least one chunk"
        potentials = _logsumexp_over_ranks(columns, group)
    if potentials is None:
        first = next(iter(logit_chunks()))
        return torch.zeros_like(_scaled(first[:0], temperature).sum(dim=0))
    return potentials


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature


def _logsumexp_over_ranks(values: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    if group is None:
        return values
    highest = distributed.all_reduce(values.clone(), dist.ReduceOp.MAX, group)
    # Where no rank has a token the sum is 0 and its logarithm -inf, but -inf - -inf is a NaN.
    highest = highest.nan_to_num(neginf=0.0)
    total = distributed.all_reduce((values - highest).exp(), group=group)
    return highest + total.log()
