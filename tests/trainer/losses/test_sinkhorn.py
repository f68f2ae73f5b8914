"""Sinkhorn-Knopp against the textbook form, also where that form overflows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.support.slow_losses import slow_sinkhorn
from trainer.losses.sinkhorn import prototype_potentials, sinkhorn_knopp


def targets_by_chunks(
    logits: Tensor, sizes: int | list[int], temperature: float, iterations: int
) -> Tensor:
    scaled = logits / temperature
    potentials = prototype_potentials(
        lambda potentials: (scaled - potentials).split(sizes),
        scaled.new_zeros(scaled.shape[1]),
        iterations=iterations,
    )
    return (scaled - potentials).softmax(dim=1)


@given(
    num_tokens=st.integers(1, 12),
    num_prototypes=st.integers(2, 9),
    iterations=st.integers(1, 5),
    chunk=st.integers(1, 13),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=50, deadline=None)
def test_is_the_textbook_form_whole_and_in_chunks(
    num_tokens: int, num_prototypes: int, iterations: int, chunk: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.rand(num_tokens, num_prototypes, generator=generator, dtype=torch.float64)
    expected = slow_sinkhorn(logits, 0.06, iterations)
    targets = sinkhorn_knopp(logits, temperature=0.06, iterations=iterations)
    torch.testing.assert_close(targets, expected)
    torch.testing.assert_close(targets_by_chunks(logits, chunk, 0.06, iterations), expected)


@pytest.mark.parametrize("scale", [4.0, 100.0])
def test_large_logits_stay_finite(scale: float) -> None:
    """exp(4 / 0.04) overflows float32, so the textbook form gives NaN here."""
    generator = torch.Generator().manual_seed(0)
    logits = (torch.rand(64, 32, generator=generator) * 2 - 1) * scale
    targets = sinkhorn_knopp(logits, temperature=0.04)
    assert targets.dtype == torch.float32
    assert targets.isfinite().all()
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(64))
    exact = sinkhorn_knopp(logits.double(), temperature=0.04)
    torch.testing.assert_close(targets.double(), exact, atol=5e-3, rtol=0)


def test_prototypes_are_used_equally_after_many_iterations() -> None:
    logits = torch.randn(60, 6, dtype=torch.float64)
    logits[:, 0] += 2.0  # Without balancing, nearly every token would choose this one.
    targets = sinkhorn_knopp(logits, temperature=0.5, iterations=200)
    torch.testing.assert_close(targets.sum(dim=0), torch.full((6,), 10.0, dtype=torch.float64))


def test_no_tokens_give_no_targets() -> None:
    targets = sinkhorn_knopp(torch.empty(0, 5), temperature=0.04)
    assert targets.shape == (0, 5)


def test_chunks_may_be_empty() -> None:
    logits = torch.rand(5, 4, dtype=torch.float64)
    expected = slow_sinkhorn(logits, 0.1, 3)
    torch.testing.assert_close(targets_by_chunks(logits, [0, 5, 0], 0.1, 3), expected)


def test_without_iterations_targets_are_a_softmax() -> None:
    logits = torch.rand(5, 4)
    targets = sinkhorn_knopp(logits, temperature=0.1, iterations=0)
    torch.testing.assert_close(targets, (logits / 0.1).softmax(dim=1))


def test_no_gradient_flows() -> None:
    logits = torch.randn(4, 3, requires_grad=True)
    assert not sinkhorn_knopp(logits, temperature=0.1).requires_grad
