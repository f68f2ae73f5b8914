"""Compiled chains: same results as without compilation, one program for any number of rows."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from trainer.losses import contrastive, fused, ibot, sinkhorn


def iota(size: int) -> Tensor:
    return torch.arange(size)


@pytest.mark.xdist_group("models")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("chain", "ids_of_rows", "others"),
    [
        (sinkhorn._column_sums, (), ()),
        (sinkhorn._column_sums_of_softmax, (), ()),
        (ibot._cross_entropy, None, ()),
        (contrastive._row_losses, (lambda n: iota(n) % 9, lambda n: iota(n) - 1), (iota(30) % 8,)),
    ],
)
def test_one_program_for_any_number_of_rows(
    chain: Callable[..., Any],
    ids_of_rows: tuple[Callable[[int], Tensor], ...] | None,
    others: tuple[Tensor, ...],
) -> None:
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters["stats"]
    counters.clear()
    for num_rows in (20, 7, 1, 2, 29):
        logits = 10 * torch.randn(2, num_rows, 30, dtype=torch.float64)
        rows = tuple(logits)  # Logits of student and teacher.
        if ids_of_rows is not None:
            rows = (logits[0], *(ids(num_rows) for ids in ids_of_rows))
        expected = chain(*rows, *others)
        result = fused.run(chain, rows, *others, compiled=True)
        torch.testing.assert_close(result, expected)
    assert counters["unique_graphs"] == 1
