"""The multi-positive loss against its definition, written as loops."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.slow_losses import slow_multi_positive_loss
from trainer.losses.contrastive import multi_positive_loss


@given(
    num_anchors=st.integers(1, 9),
    num_keys=st.integers(1, 9),
    num_ids=st.integers(1, 4),
    chunk=st.integers(1, 10),
    tau=st.sampled_from([0.04, 0.08, 0.5]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_is_its_definition_whole_and_in_chunks(
    num_anchors: int, num_keys: int, num_ids: int, chunk: int, tau: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    anchors = torch.randn(num_anchors, 5, generator=generator, dtype=torch.float64)
    keys = torch.randn(num_keys, 5, generator=generator, dtype=torch.float64)
    anchor_ids = torch.randint(num_ids, (num_anchors,), generator=generator)
    key_ids = torch.randint(num_ids, (num_keys,), generator=generator)
    exclude = torch.randint(-1, num_keys, (num_anchors,), generator=generator)
    expected = slow_multi_positive_loss(anchors, keys, anchor_ids, key_ids, tau, exclude)
    gradients = []
    for chunk_size in (None, chunk):
        inputs = (anchors.clone().requires_grad_(), keys.clone().requires_grad_())
        loss = multi_positive_loss(
            *inputs, anchor_ids, key_ids, temperature=tau, exclude=exclude, chunk_size=chunk_size
        )
        assert loss.item() == pytest.approx(expected, abs=1e-9)
        gradients.append(torch.autograd.grad(loss, inputs))
    for whole, chunked in zip(*gradients, strict=True):
        torch.testing.assert_close(whole, chunked)
        assert whole.isfinite().all()


def test_an_anchor_without_positives_adds_nothing_and_has_a_finite_gradient() -> None:
    anchors = torch.randn(2, 3, requires_grad=True)
    ids = torch.tensor([1, 2])
    # One image per caption and one crop: the only positive of an anchor is the key it excludes.
    loss = multi_positive_loss(
        anchors, torch.randn(2, 3), ids, ids, temperature=0.1, exclude=torch.tensor([0, 1])
    )
    loss.backward()
    assert loss.item() == 0.0
    assert anchors.grad is not None
    assert anchors.grad.abs().sum() == 0.0


def test_the_only_key_may_be_the_excluded_one() -> None:
    anchor = torch.randn(1, 3, requires_grad=True)
    ids = torch.tensor([7])
    loss = multi_positive_loss(
        anchor, anchor.detach(), ids, ids, temperature=0.1, exclude=torch.tensor([0])
    )
    loss.backward()
    assert loss.item() == 0.0
    assert anchor.grad is not None
    assert anchor.grad.isfinite().all()


def test_ids_are_compared_in_every_call() -> None:
    """A mask cached from a batch of the same size would give both batches the same loss."""
    anchors, keys = torch.randn(6, 4), torch.randn(6, 4)
    key_ids = torch.tensor([0, 0, 1, 1, 2, 2])
    before = multi_positive_loss(anchors, keys, key_ids, key_ids, temperature=0.1)
    order = torch.tensor([0, 2, 4, 1, 3, 5])
    after = multi_positive_loss(anchors, keys, key_ids[order], key_ids, temperature=0.1)
    moved = multi_positive_loss(anchors[order], keys, key_ids[order], key_ids, temperature=0.1)
    assert before != after
    torch.testing.assert_close(moved, before)


def test_lengths_of_vectors_do_not_matter() -> None:
    anchors, keys, ids = torch.randn(4, 3), torch.randn(4, 3), torch.tensor([0, 0, 1, 1])
    loss = multi_positive_loss(anchors, keys, ids, ids, temperature=0.08)
    scaled = multi_positive_loss(
        anchors * torch.tensor([[1.0], [9.0], [0.1], [50.0]]), keys * 3, ids, ids, temperature=0.08
    )
    torch.testing.assert_close(loss, scaled)


def test_half_precision_inputs_are_compared_in_float32() -> None:
    anchors, ids = torch.randn(4, 3).bfloat16(), torch.tensor([0, 0, 1, 1])
    with torch.autocast("cpu", torch.bfloat16):
        loss = multi_positive_loss(anchors, anchors, ids, ids, temperature=0.08)
    exact = multi_positive_loss(anchors.double(), anchors.double(), ids, ids, temperature=0.08)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)


def test_perfect_embeddings_reach_the_entropy_of_the_positives() -> None:
    """Orthogonal captions with equal images: the loss is the log of the number of positives."""
    ids = torch.arange(8).repeat_interleave(4)
    embeddings = torch.eye(8)[ids]
    loss = multi_positive_loss(
        embeddings, embeddings, ids, ids, temperature=0.01, exclude=torch.arange(32)
    )
    assert loss.item() == pytest.approx(math.log(3), abs=1e-5)
