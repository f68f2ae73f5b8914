"""Top-p sampling without sorting the vocabulary, for vLLM on a CPU.

vLLM 0.32 sorts all logits of all captions at every token, which costs as much as the whole forward
pass of a small model on a CPU. The tokens that top-p keeps are nearly always among the few hundred
most likely ones, so only those are sorted; a row for which they do not suffice is sorted as a
whole. The same tokens are kept, except for ties: all tokens exactly as likely as the last one kept
stay.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

SHORTLIST = 512
"""Most likely tokens that are looked at first."""


def keep_top_p(logits: "torch.Tensor", top_p: float) -> "torch.Tensor":
    """Set all logits to -inf except those of the smallest set that holds `top_p` of the mass.

    Args:
        logits: [B, V], after temperature; changed in place.
        top_p: Probability mass to keep, in (0, 1]; the most likely token always stays.

    Returns:
        The same tensor.
    """
    size = min(SHORTLIST, logits.shape[1])
    totals = logits.logsumexp(dim=1, keepdim=True)
    thresholds, whole = _thresholds(logits.topk(size, dim=1).values, totals, top_p)
    if size < logits.shape[1] and not bool(whole.all()):
        rows = (~whole).nonzero().squeeze(1)
        ranked = logits[rows].sort(dim=1, descending=True).values
        thresholds[rows] = _thresholds(ranked, totals[rows], top_p)[0]
    return logits.masked_fill_(logits < thresholds, float("-inf"))


def _thresholds(
    ranked: "torch.Tensor", totals: "torch.Tensor", top_p: float
) -> "tuple[torch.Tensor, torch.Tensor]":
    """Return the smallest logit to keep of each row, and whether `ranked` holds all kept logits.

    Args:
        ranked: [B, K], the largest logits in descending order.
        totals: [B, 1], log of the sum of all exponentials.
        top_p: Probability mass to keep.

    Returns:
        Thresholds [B, 1] and booleans [B].
    """
    masses = (ranked - totals).exp()
    # A token is kept if the tokens before it hold too little mass.
    kept = (masses.cumsum(dim=1) - masses < top_p).sum(dim=1, keepdim=True).clamp(min=1)
    return ranked.gather(1, kept - 1), (kept < ranked.shape[1]).squeeze(1)
