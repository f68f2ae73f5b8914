"""iBOT's loss against loops, and its chunked form against the dense one."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.losses.ibot import (
    chunked_ibot_loss,
    ibot_loss,
    teacher_targets,
    token_weights,
)
from trainer.losses.sinkhorn import sinkhorn_knopp
from trainer.models.heads import Prototypes


@given(
    image_ids=st.lists(st.integers(0, 5), min_size=1, max_size=12),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=40, deadline=None)
def test_every_image_weighs_the_same(image_ids: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    num_tokens = len(image_ids)
    student = torch.randn(num_tokens, 7, generator=generator, dtype=torch.float64)
    targets = torch.rand(num_tokens, 7, generator=generator, dtype=torch.float64)
    targets /= targets.sum(dim=1, keepdim=True)
    by_image: dict[int, list[float]] = {}
    for token, image in enumerate(image_ids):
        probability = torch.softmax(student[token] / 0.1, dim=0)
        entropy = -sum(
            float(t) * float(p.log()) for t, p in zip(targets[token], probability, strict=True)
        )
        by_image.setdefault(image, []).append(entropy)
    expected = np.mean([np.mean(values) for values in by_image.values()])
    loss = ibot_loss(student, targets, torch.tensor(image_ids), temperature=0.1)
    assert loss.item() == pytest.approx(expected)


@pytest.mark.parametrize("chunk_size", [None, 1, 3, 100])
def test_the_chunked_form_is_the_dense_one(chunk_size: int | None) -> None:
    torch.manual_seed(0)
    student, teacher = Prototypes(6, 11).double(), Prototypes(6, 11).double()
    image_ids = torch.tensor([0, 0, 3, 3, 3, 4, 9, 9, 9, 9])
    unit = torch.nn.functional.normalize
    features = unit(torch.randn(10, 6, dtype=torch.float64), dim=1).requires_grad_()
    teacher_features = unit(torch.randn(10, 6, dtype=torch.float64), dim=1)

    wanted = sinkhorn_knopp(teacher(teacher_features), temperature=0.04)
    dense = ibot_loss(student(features), wanted, image_ids, temperature=0.1)
    expected = torch.autograd.grad(dense, [features, *student.parameters()])

    targets = teacher_targets(
        teacher_features, teacher.weight(), temperature=0.04, chunk_size=chunk_size
    )
    chunked = chunked_ibot_loss(
        features,
        student.weight(),
        targets,
        token_weights(image_ids),
        temperature=0.1,
        chunk_size=chunk_size,
    )
    torch.testing.assert_close(chunked, dense)
    gradients = torch.autograd.grad(chunked, [features, *student.parameters()])
    for gradient, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other)


def test_without_masked_tokens_the_loss_is_zero_with_a_gradient() -> None:
    prototypes = Prototypes(4, 5)
    features = torch.empty(0, 4, requires_grad=True)
    weight = prototypes.weight()
    targets = teacher_targets(torch.empty(0, 4), weight, temperature=0.04)
    no_ids = torch.empty(0, dtype=torch.int64)
    loss = chunked_ibot_loss(features, weight, targets, token_weights(no_ids), temperature=0.1)
    loss.backward()
    assert loss.item() == 0.0
    assert prototypes.direction.grad is not None
    assert prototypes.direction.grad.abs().sum() == 0.0
    dense = ibot_loss(torch.empty(0, 5), torch.empty(0, 5), no_ids, temperature=0.1)
    assert dense.item() == 0.0
