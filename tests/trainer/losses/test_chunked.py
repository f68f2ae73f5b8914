"""The chunked sum: value, gradient by finite differences, and memory of one chunk."""

from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.step_memory import StorageCount
from trainer.losses.chunked import sum_in_chunks
from trainer.losses.contrastive import multi_positive_loss
from trainer.losses.ibot import chunked_ibot_loss, teacher_targets, token_weights


def row_losses(logits: Tensor, _: slice) -> tuple[Tensor, Tensor]:
    totals = logits.sin().sum(dim=1)
    return totals.square(), 2 * totals[:, None] * logits.cos()


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("chunk_size", [None, 1, 3, 50])
def test_is_the_whole_weighted_sum_with_its_gradient(chunk_size: int | None) -> None:
    rows, shared = random(7, 4).requires_grad_(), random(5, 4, seed=1).requires_grad_()
    weights = random(7, seed=2)
    whole = (weights * (rows @ shared.T).sin().sum(dim=1).square()).sum()
    chunked = sum_in_chunks(row_losses, rows, shared, weights, chunk_size)
    torch.testing.assert_close(chunked, whole)
    expected = torch.autograd.grad(3.0 * whole, [rows, shared])
    gradients = torch.autograd.grad(3.0 * chunked, [rows, shared])
    torch.testing.assert_close(gradients, expected)


def test_gradcheck() -> None:
    rows, shared = random(5, 3).requires_grad_(), random(4, 3, seed=1).requires_grad_()
    weights = random(5, seed=2)
    assert torch.autograd.gradcheck(
        lambda r, s: sum_in_chunks(row_losses, r, s, weights, 2), (rows, shared)
    )


def test_gradcheck_of_the_contrastive_loss_with_a_learned_temperature() -> None:
    ids = torch.tensor([0, 0, 1, 1, 2])  # The last has no positive.
    exclude = torch.arange(5)

    def loss(anchors: Tensor, keys: Tensor, temperature: Tensor) -> Tensor:
        return multi_positive_loss(
            anchors, keys, ids, ids, temperature=temperature, exclude=exclude, chunk_size=2
        )

    inputs = (random(5, 3), random(5, 3, seed=1), torch.tensor([0.3], dtype=torch.float64))
    assert torch.autograd.gradcheck(loss, tuple(value.requires_grad_() for value in inputs))


def test_gradcheck_of_ibot() -> None:
    targets = teacher_targets(random(6, 3), random(5, 3, seed=1), temperature=0.3)
    weights = token_weights(torch.tensor([0, 0, 0, 1, 4, 4]))

    def loss(features: Tensor, prototypes: Tensor) -> Tensor:
        return chunked_ibot_loss(
            features, prototypes, targets, weights, temperature=0.3, chunk_size=4
        )

    inputs = (random(6, 3, seed=2).requires_grad_(), random(5, 3, seed=3).requires_grad_())
    assert torch.autograd.gradcheck(loss, inputs)


def test_ten_chunks_need_the_memory_of_one() -> None:
    shared, peaks = random(1000, 2).requires_grad_(), []
    for num_rows in (6, 60):
        rows = random(num_rows, 2).requires_grad_()
        with StorageCount() as storages:
            sum_in_chunks(row_losses, rows, shared, rows.detach()[:, 0], chunk_size=6)
        peaks.append(storages.peak)
    assert peaks[1] < 1.1 * peaks[0]


@pytest.mark.parametrize("wanted", [(True, False), (False, True), (True, True)])
def test_only_wanted_gradients_are_computed(wanted: tuple[bool, bool]) -> None:
    rows, shared = random(4, 2).requires_grad_(wanted[0]), random(3, 2).requires_grad_(wanted[1])
    total = sum_in_chunks(row_losses, rows, shared, random(4), 2)
    kept: Any = total.grad_fn
    assert tuple(gradient is not None for gradient in kept.saved_tensors) == wanted


def test_no_rows_are_zero_with_a_zero_gradient() -> None:
    rows, shared = torch.empty(0, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    total = sum_in_chunks(row_losses, rows, shared, torch.empty(0), None)
    total.backward()
    assert total.item() == 0.0
    assert shared.grad is not None
    assert shared.grad.abs().sum() == 0.0
