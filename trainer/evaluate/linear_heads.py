"""Linear classifiers on the same features, trained side by side in one batched product.

Source: paper section 4, the linear probe on ImageNet, whose learning rate is a matter of trying.
All heads see the same features, with or without a batch norm before them. It has no weights, so its
output is the same for all heads that have one, and a step of all heads is two products of matrices
per kind of input: one for all logits, one for all gradients.

Each head is trained exactly as it would be alone. Initial weights are MAE's: normal with standard
deviation 0.01, biases 0, the same for every head.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainer import distributed

STD, EPSILON, STATISTICS_MOMENTUM = 0.01, 1e-6, 0.1
"""Deviation of first weights (MAE); epsilon (MAE) and momentum (torch) of the batch norm."""
ROWS = 1024
"""Rows that are predicted at once; bounds the logits of all heads."""


@dataclass(frozen=True)
class Head:
    """What distinguishes a head from the others."""

    rate: float
    """Learning rate at the start of the schedule."""
    normed: bool
    """Whether a batch norm without weights is before it."""


class Heads:
    """Heads, their momentum and the running statistics of the batch norm.

    Args:
        width: Number of features, D.
        num_classes: Number of classes, C.
        rates: Learning rates; there are two heads of each, without and with batch norm.
        momentum: Momentum of SGD.
        seed: Seed of the first weights.
        device: Device of the heads and features.
        dtype: Precision of weights and arithmetic.
    """

    def __init__(
        self,
        width: int,
        num_classes: int,
        rates: Sequence[float],
        *,
        momentum: float = 0.9,
        seed: int = 0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        first = STD * torch.randn(num_classes, width, generator=generator)
        self.heads = [Head(rate, normed) for normed in (False, True) for rate in rates]
        self._rates, self._classes, self._momentum = len(rates), num_classes, momentum
        first = first.to(device, dtype)
        # Rows of a kind of input: the classes of the first head, those of the second, and so on.
        self._weight = first.repeat(2, len(rates), 1)  # [2, R * C, D]
        self._bias = first.new_zeros(2, len(rates) * num_classes)
        self._weight_velocity = torch.zeros_like(self._weight)
        self._bias_velocity = torch.zeros_like(self._bias)
        self._mean, self._variance = first.new_zeros(width), first.new_ones(width)
        row_rates = torch.tensor(rates, device=device, dtype=dtype).repeat_interleave(num_classes)
        self._row_rates = row_rates[None, :, None]  # [1, R * C, 1]
        self.width, self.device = width, first.device

    def state(self) -> dict[str, Tensor]:
        """Return all tensors that training changes; not copies."""
        return {
            "weight": self._weight,
            "bias": self._bias,
            "weight_velocity": self._weight_velocity,
            "bias_velocity": self._bias_velocity,
            "mean": self._mean,
            "variance": self._variance,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` returned."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])

    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor, factor: float) -> None:
        """Take one step of SGD on the mean cross-entropy of a batch; all ranks call this together.

        The batch is the rows of all ranks, of which a rank may have any number. Statistics and
        gradients are those of the whole batch, so the number of ranks changes them by rounding
        alone. A batch without rows changes nothing.

        Args:
            features: Rows of this rank, [B, D].
            labels: Their classes, int64 [B].
            factor: Factor of all learning rates, from their schedule.
        """
        features = features.to(self._weight.dtype)
        count = int(distributed.all_reduce(torch.tensor(len(features))))
        if count == 0:
            return
        inputs = torch.stack([features, self._normalised_batch(features, count)])  # [2, B, D]
        slopes = self._logits(inputs).softmax(dim=-1)  # [2, B, R, C]
        rows = torch.arange(len(labels), device=labels.device)
        slopes[:, rows, :, labels] -= 1
        slopes = slopes.flatten(2).div_(count)  # [2, B, R * C]
        weight_gradient = distributed.all_reduce(slopes.transpose(1, 2) @ inputs)
        bias_gradient = distributed.all_reduce(slopes.sum(dim=1))
        rates = factor * self._row_rates
        self._weight_velocity.mul_(self._momentum).add_(weight_gradient)
        self._bias_velocity.mul_(self._momentum).add_(bias_gradient)
        self._weight.sub_(rates * self._weight_velocity)
        self._bias.sub_(rates[..., 0] * self._bias_velocity)

    @torch.no_grad()
    def predict(self, features: Tensor) -> Tensor:
        """Return the class that each head predicts for each row, int64 [H, N]."""
        return torch.cat(list(self._predictions(features)), dim=1)

    def _predictions(self, features: Tensor) -> Iterator[Tensor]:
        scale = (self._variance + EPSILON).rsqrt()
        for rows in features.to(self._weight.dtype).split(ROWS):
            inputs = torch.stack([rows, (rows - self._mean) * scale])
            yield self._logits(inputs).argmax(dim=-1).permute(0, 2, 1).flatten(0, 1)

    def _logits(self, inputs: Tensor) -> Tensor:
        """Return the logits of all heads, [2, B, R, C], for both kinds of input, [2, B, D]."""
        logits = torch.baddbmm(self._bias[:, None], inputs, self._weight.transpose(1, 2))
        return logits.unflatten(2, (self._rates, self._classes))

    def _normalised_batch(self, features: Tensor, count: int) -> Tensor:
        """Return this rank's rows, normalised by the whole batch, and note its statistics.

        Features are frozen, so no gradient passes here.
        """
        mean = distributed.all_reduce(features.sum(dim=0)) / count
        centred = features - mean
        squares = distributed.all_reduce(centred.square().sum(dim=0))
        self._mean.lerp_(mean, STATISTICS_MOMENTUM)
        self._variance.lerp_(squares / max(count - 1, 1), STATISTICS_MOMENTUM)
        return centred * (squares / count + EPSILON).rsqrt()
