"""Chains of elementwise operations and reductions over large tensors, compiled on request.

Without compilation each operation of a chain reads a whole tensor (logits, images) from the
device's memory, and most write it back. That takes several times as long as the matrix products
around them. Compiled, a chain is one kernel or two. Matrix products stay outside the chains.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


def run(
    chain: Callable[..., Result], rows: tuple[Tensor, ...], *others: Tensor, compiled: bool
) -> Result:
    """Return `chain(*rows, *others)`, compiled to one program for any number of rows.

    Args:
        chain: A function at the top level of a module. It takes and returns only tensors: for each
            value of a number there would be another program. It may overwrite tensors that it made.
        rows: Tensors with the same size in the first dimension. There is another program for each
            size of their other dimensions.
        others: Tensors whose shapes are the same in every call.
        compiled: If false, run the chain with torch's own kernels, one after the other.
    """
    if not compiled or len(rows[0]) < 2:  # The compiler specialises on the sizes 0 and 1.
        return chain(*rows, *others)
    for tensor in rows:
        torch._dynamo.maybe_mark_dynamic(tensor, 0)
    result: Result = _compiled(chain)(*rows, *others)
    return result


@functools.cache
def _compiled(chain: Callable[..., Any]) -> Callable[..., Any]:
    # Not `dynamic`: otherwise a second size of any dimension would make programs for all sizes, and
    # which of them runs would depend on what ran before.
    return torch.compile(chain, fullgraph=True, dynamic=False)
