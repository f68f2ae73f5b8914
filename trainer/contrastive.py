"""The multi-positive contrastive loss: images of one caption belong together.

Source: paper section 3.3 (StableRep's loss). Positives are found
by comparing ids, batch by batch, so nothing goes stale when captions repeat or change their order.
"""

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint


def multi_positive_loss(
    anchors: Tensor,
    keys: Tensor,
    anchor_ids: Tensor,
    key_ids: Tensor,
    *,
    temperature: float,
    exclude: Tensor | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    """Cross-entropy between "same id" and the softmax of cosine similarity over the keys.

    For anchor a and keys b_1..b_M: q_i = softmax_i(a.b_i / temperature); p_i = 1 / |P| for the
    keys of the same id; loss = -sum_i p_i log q_i.

    Args:
        anchors: [N, D], need not be normalised.
        keys: [M, D], need not be normalised.
        anchor_ids: int64 [N].
        key_ids: int64 [M].
        temperature: Divides the similarities (paper 0.08).
        exclude: int64 [N], the index of the key that is left out for an anchor, neither positive
            nor negative (usually the key of the same image); -1 for none.
        chunk_size: Anchors at a time; their similarities are computed again in the backward pass,
            so that no more than [chunk_size, M] of them ever exist. None takes all at once.

    Returns:
        The mean over anchors; an anchor without positives adds 0. Computed in at least float32.
    """
    dtype = torch.promote_types(anchors.dtype, torch.float32)
    num_anchors = len(anchors)
    if num_anchors == 0:
        return anchors.to(dtype).sum()
    if exclude is None:
        exclude = torch.full_like(anchor_ids, -1)
    with torch.autocast(anchors.device.type, enabled=False):
        anchors = functional.normalize(anchors.to(dtype), dim=-1)
        keys = functional.normalize(keys.to(dtype), dim=-1)
        if chunk_size is None or chunk_size >= num_anchors:
            total = _summed_loss(anchors, keys, anchor_ids, key_ids, exclude, temperature)
        else:
            total = anchors.new_zeros(())
            for chunk in torch.arange(num_anchors, device=anchors.device).split(chunk_size):
                total = total + checkpoint(
                    _summed_loss,
                    anchors[chunk],
                    keys,
                    anchor_ids[chunk],
                    key_ids,
                    exclude[chunk],
                    temperature,
                    use_reentrant=False,
                    preserve_rng_state=False,
                )
    return total / num_anchors


def _summed_loss(
    anchors: Tensor,
    keys: Tensor,
    anchor_ids: Tensor,
    key_ids: Tensor,
    exclude: Tensor,
    temperature: float,
) -> Tensor:
    """Sum of the losses of normalised anchors [n, D] against normalised keys [M, D]."""
    logits = anchors @ keys.T / temperature
    excluded = exclude[:, None] == torch.arange(len(keys), device=keys.device)
    positive = (anchor_ids[:, None] == key_ids) & ~excluded
    num_positives = positive.sum(dim=1)
    counts = num_positives > 0
    # Rows that count keep at least one key, so their log-sum-exp is finite. The other rows are
    # left whole: an all -inf row would turn the zero they add into a NaN in the backward pass.
    log_total = logits.masked_fill(excluded & counts[:, None], -torch.inf).logsumexp(dim=1)
    log_positive = (logits * positive).sum(dim=1) / num_positives.clamp(min=1)
    return torch.where(counts, log_total - log_positive, 0.0).sum()
