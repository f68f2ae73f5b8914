"""The multi-positive contrastive loss: images of one caption are positives of each other.

Source: paper section 3.3 (StableRep's loss). Positives are found in each batch by comparing ids, so
captions may repeat and come in any order.
"""

import torch
from torch import Tensor
from torch.nn import functional

from trainer.losses import fused
from trainer.losses.chunked import sum_in_chunks


def multi_positive_loss(
    anchors: Tensor,
    keys: Tensor,
    anchor_ids: Tensor,
    key_ids: Tensor,
    *,
    temperature: float | Tensor,
    exclude: Tensor | None = None,
    chunk_size: int | None = None,
    compiled: bool = False,
) -> Tensor:
    """Return the cross-entropy between "same id" and the softmax of cosine similarities.

    For anchor a and keys b_1..b_M: q_i = softmax_i(a.b_i / temperature); p_i = 1 / |P| for the
    keys of the same id; loss = -sum_i p_i log q_i.

    Args:
        anchors: [N, D], need not be normalised.
        keys: [M, D], need not be normalised.
        anchor_ids: int64 [N].
        key_ids: int64 [M].
        temperature: Divides the similarities (paper: 0.08); as a tensor it may be learned.
        exclude: int64 [N], the index of the key that is left out for an anchor, neither positive
            nor negative (usually the key of the same image); -1 for none.
        chunk_size: Anchors at a time; at most [chunk_size, M] similarities exist at once. None
            takes all anchors at once.
        compiled: Compile all but the matrix products.

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

    def losses(logits: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        chunk = (logits, anchor_ids[rows], left_out[rows])
        return fused.run(_row_losses, chunk, key_ids, compiled=compiled)

    with torch.autocast(anchors.device.type, enabled=False):
        anchors = functional.normalize(anchors.to(dtype), dim=-1) / temperature
        keys = functional.normalize(keys.to(dtype), dim=-1)
    weights = anchors.new_full((num_anchors,), 1 / num_anchors)
    return sum_in_chunks(losses, anchors, keys, weights, chunk_size)


def _row_losses(
    logits: Tensor, anchor_ids: Tensor, exclude: Tensor, key_ids: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the losses [n] of anchors and their gradients with respect to the logits [n, M]."""
    excluded = exclude[:, None] == torch.arange(len(key_ids), device=key_ids.device)
    positive = (anchor_ids[:, None] == key_ids) & ~excluded
    num_positives = positive.sum(dim=1, keepdim=True)
    counts = num_positives > 0
    share = 1 / num_positives.clamp(min=1).to(logits.dtype)
    # Rows that count keep at least one key, so their log-sum-exp is finite. In the other rows no
    # key is left out: a row of only -inf would give NaN, also when multiplied by 0.
    log_probability = logits.masked_fill(excluded & counts, -torch.inf).log_softmax(dim=1)
    values = -share.squeeze(1) * torch.where(positive, log_probability, 0.0).sum(dim=1)
    slopes = log_probability.exp_().sub_(positive * share).mul_(counts)
    return values, slopes
