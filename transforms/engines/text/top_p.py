"""Top-p sampling without sorting the vocabulary, for vLLM on a CPU.

vLLM 0.32 sorts all logits of all captions at every token, which costs as much as the whole forward
pass of a small model on a CPU. The nucleus is nearly always within the few hundred most likely
tokens, so those are enough; where they are not, that row is sorted after all. What is kept is the
same, but for tokens that are exactly as likely as the last one kept: all of those stay.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

SHORTLIST = 512
"""Most likely tokens looked at first."""


def keep_nucleus(logits: "torch.Tensor", top_p: float) -> "torch.Tensor":
    """Set all logits to -inf but those of the smallest set that holds `top_p` of the mass.

    Args:
        logits: [B, V], after temperature; changed in place.
        top_p: In (0, 1]; the most likely token always stays.

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
    """The smallest logit to keep of each row, and whether the row's nucleus ends in `ranked`.

    Args:
        ranked: [B, K], the largest logits in falling order.
        totals: [B, 1], log of the sum of all exponentials.
        top_p: Mass of the nucleus.
    """
    masses = (ranked - totals).exp()
    # A token is in the nucleus if those before it hold too little.
    kept = (masses.cumsum(dim=1) - masses < top_p).sum(dim=1, keepdim=True).clamp(min=1)
    return ranked.gather(1, kept - 1), (kept < ranked.shape[1]).squeeze(1)


def nucleus_processor(top_p: float) -> type[Any]:
    """The class of a vLLM logits processor that keeps the nucleus of every caption.

    It runs where vLLM's own top-p does: after temperature.
    """
    from vllm.v1.sample.logits_processor import LogitsProcessor

    class NucleusProcessor(LogitsProcessor):
        def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None:
            """Nothing to keep: all captions have the same top_p."""

        def apply(self, logits: "torch.Tensor") -> "torch.Tensor":
            return keep_nucleus(logits, top_p)

        def is_argmax_invariant(self) -> bool:
            return True

        def update_state(self, batch_update: Any) -> None:
            """Nothing depends on which captions are in the batch."""

    return NucleusProcessor
