"""The multi-positive contrastive loss: images of one caption belong together.

Source: paper section 3.3 (StableRep's loss). Positives are found
by comparing ids, batch by batch, so nothing goes stale when captions repeat or change their order.
"""

import torch
from torch import Tensor
from torch.nn import functional

from trainer.chunked import sum_in_chunks


def multi_positive_loss(
    anchors: Tensor,
    keys: Tensor,
    anchor_ids: Tensor,
    key_ids: Tensor,
    *,
    temperature: float | Tensor,
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
        temperature: Divides the similarities (paper 0.08); as a tensor it may be learned.
        exclude: int64 [N], the index of the key that is left out for an anchor, neither positive
            nor negative (usually the key of the same image); -1 for none.
        chunk_size: Anchors at a time: no more than [chunk_size, M] similarities ever exist. None
            takes all at once.

    Returns:
        The mean over anchors; an anchor without positives adds 0. Computed in at least float32.
    """
    dtype = torch.promote_types(anchors.dtype, torch.float32)
    num_anchors = len(anchors)
    if num_anchors == 0:
        return anchors.to(dtype).sum()
    if exclude is None:
        exclude = torch.full_like(anchor_ids, -1)
    left_out = exclude

    def chunk_loss(chunk: Tensor, keys: Tensor, rows: slice) -> Tensor:
        return _summed_loss(chunk, keys, anchor_ids[rows], key_ids, left_out[rows])

    with torch.autocast(anchors.device.type, enabled=False):
        anchors = functional.normalize(anchors.to(dtype), dim=-1) / temperature
        keys = functional.normalize(keys.to(dtype), dim=-1)
        total = sum_in_chunks(chunk_loss, anchors, keys, chunk_size)
    return total / num_anchors


def _summed_loss(
    anchors: Tensor,
    keys: Tensor,
    anchor_ids: Tensor,
    key_ids: Tensor,
    exclude: Tensor,
) -> Tensor:
    """Sum of the losses of anchors [n, D], of length 1 / temperature, against unit keys [M, D]."""
    logits = anchors @ keys.T
    excluded = exclude[:, None] == torch.arange(len(keys), device=keys.device)
    positive = (anchor_ids[:, None] == key_ids) & ~excluded
    num_positives = positive.sum(dim=1)
    counts = num_positives > 0
    # Rows that count keep at least one key, so their log-sum-exp is finite. The other rows are
    # left whole: an all -inf row would turn the zero they add into a NaN in the backward pass.
    log_total = logits.masked_fill(excluded & counts[:, None], -torch.inf).logsumexp(dim=1)
    log_positive = (logits * positive).sum(dim=1) / num_positives.clamp(min=1)
    return torch.where(counts, log_total - log_positive, 0.0).sum()
