"""The batched heads against single heads of torch, and against each other over ranks."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.support.ranks import run_on_ranks
from trainer import distributed
from trainer.evaluate.linear_heads import EPSILON, Heads

WIDTH, CLASSES, RATES = 6, 4, (0.05, 0.3, 2.0)
FACTORS = (1.0, 0.8, 0.5, 0.2)


def batches(rows: int = 17) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    scale = torch.tensor([0.01, 1, 1, 3, 50, 1], dtype=torch.float64)
    return [
        (
            scale * torch.randn(rows, WIDTH, generator=generator, dtype=torch.float64) + 1,
            torch.randint(CLASSES, (rows,), generator=generator),
        )
        for _ in FACTORS
    ]


def trained(ranks: int = 1, rank: int = 0) -> Heads:
    heads = Heads(WIDTH, CLASSES, RATES, seed=5, dtype=torch.float64)
    for (features, labels), factor in zip(batches(), FACTORS, strict=True):
        heads.update(features[rank::ranks], labels[rank::ranks], factor)
    return heads


def trained_alone(rate: float, normed: bool) -> nn.Sequential:
    """Train one head with torch's own modules and optimiser."""
    first = Heads(WIDTH, CLASSES, RATES, seed=5, dtype=torch.float64).state()
    linear = nn.Linear(WIDTH, CLASSES, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(first["weight"][0, :CLASSES])
        linear.bias.zero_()
    norm = nn.BatchNorm1d(WIDTH, affine=False, eps=EPSILON, dtype=torch.float64)
    head = nn.Sequential(norm if normed else nn.Identity(), linear)
    optimizer = torch.optim.SGD(head.parameters(), lr=rate, momentum=0.9)
    for (features, labels), factor in zip(batches(), FACTORS, strict=True):
        optimizer.param_groups[0]["lr"] = rate * factor
        optimizer.zero_grad()
        nn.functional.cross_entropy(head(features), labels).backward()
        optimizer.step()
    return head.eval()


def test_each_head_is_the_one_that_torch_trains_alone() -> None:
    heads = trained()
    weights = heads.state()["weight"].unflatten(1, (len(RATES), CLASSES)).flatten(0, 1)
    biases = heads.state()["bias"].unflatten(1, (len(RATES), CLASSES)).flatten(0, 1)
    test = batches(rows=40)[0][0]
    predicted = heads.predict(test)
    assert [(head.rate, head.normed) for head in heads.heads] == [
        *((rate, False) for rate in RATES),
        *((rate, True) for rate in RATES),
    ]
    for number, head in enumerate(heads.heads):
        alone = trained_alone(head.rate, head.normed)
        linear = alone[1]
        assert isinstance(linear, nn.Linear)
        torch.testing.assert_close(weights[number], linear.weight.detach(), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(biases[number], linear.bias.detach(), rtol=1e-10, atol=1e-12)
        assert torch.equal(predicted[number], alone(test).argmax(dim=1))


def test_predictions_do_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    heads, test = trained(), batches(rows=40)[0][0]
    whole = heads.predict(test)
    monkeypatch.setattr("trainer.evaluate.linear_heads.ROWS", 7)
    assert torch.equal(heads.predict(test), whole)


def test_first_weights_depend_on_the_seed_alone() -> None:
    one, other = (Heads(WIDTH, CLASSES, rates, seed=1).state() for rates in (RATES, RATES[:1]))
    assert torch.equal(one["weight"][:, :CLASSES], other["weight"])
    assert not torch.equal(one["weight"], Heads(WIDTH, CLASSES, RATES, seed=2).state()["weight"])


def test_a_batch_without_rows_changes_nothing() -> None:
    heads = trained()
    before = {name: tensor.clone() for name, tensor in heads.state().items()}
    heads.update(torch.empty(0, WIDTH), torch.empty(0, dtype=torch.int64), 1.0)
    assert all(torch.equal(heads.state()[name], tensor) for name, tensor in before.items())


def trained_on_this_rank() -> dict[str, Tensor]:
    return trained(distributed.world_size(), distributed.rank()).state()


def test_ranks_train_the_heads_of_one_process(tmp_path: Path) -> None:
    """The batch of 17 rows is 9 and 8 of them."""
    expected = trained().state()
    for state in run_on_ranks(trained_on_this_rank, 2, tmp_path):
        for name, tensor in state.items():
            torch.testing.assert_close(tensor, expected[name], rtol=1e-10, atol=1e-12)
