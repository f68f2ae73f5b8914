"""Logistic regressions with many L2 strengths at once, by L-BFGS in float64.

The fit of strength s minimises

    (sum over pictures of the cross-entropy + s / 2 * |W|^2) / number of pictures

scikit-learn's `LogisticRegression(C=1 / s)` has the same minimum. The intercept is not regularised.
With several labels per picture the cross-entropies of the classes, each against the rest, are
summed, which are scikit-learn's one-versus-rest fits.

The strengths of a wave share two matrix products per iteration, those of the pictures with the
stacked weights, and have their own L-BFGS state, step size and stop. Three things save most of the
iterations and leave the minimum as it is. The features are rotated to their principal axes, which
keeps |W|. The initial inverse Hessian of every iteration is the diagonal 1 / (k * sum of squares of
the axis + s), where k is the mean of p * (1 - p); for a p * (1 - p) that is the same everywhere it
is exact. A first wave fits every eighth strength from 0, and each later wave the strengths between,
from weights that are interpolated over log(s). A strength stops as scikit-learn does: if no
component of the gradient exceeds the tolerance, or an iteration improves the loss by less than 64
roundings of 1.
"""

from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

MEMORY = 10
"""Pairs of steps and gradient changes that L-BFGS keeps (scikit-learn: 10)."""
MIN_DECREASE = 64 * torch.finfo(torch.float64).eps
"""Decrease of the loss in one iteration at which a fit stops (scikit-learn: the same)."""
ARMIJO = 1e-4
"""Share of the predicted decrease that a step must reach."""
MAX_TRIALS = 30
"""Step sizes that are tried in one iteration."""
CHUNK_LOGITS = 2**18
"""Logits computed at once, which fit into a cache; changes results by rounding only."""
FIRST_STRIDE = 8
"""Of the strengths in order, every so many are fitted first; a power of 2."""
KNOTS = 4
"""Known fits that a start is interpolated from."""
NULL_AXIS = 1e-13
"""Share of the largest variance below which an axis has no variance; its weights are 0."""


@dataclass(frozen=True)
class Fits:
    """The fits of all strengths, in the order of the strengths."""

    weights: Tensor
    """[S, D, C]."""
    bias: Tensor
    """[S, C]."""
    losses: Tensor
    """[S], the minimised mean."""
    gradients: Tensor
    """[S], largest component of the gradient, with respect to rotated weights."""
    num_iterations: Tensor
    """[S]."""
    converged: Tensor
    """[S], False for fits that the limit of iterations ended."""

    def logits(self, inputs: Tensor) -> Tensor:
        """Return the logits [S, N, C] of inputs [N, D]."""
        return inputs.to(self.weights) @ self.weights + self.bias[:, None]


class _Point(NamedTuple):
    """Weights of several strengths and what is known there; weights are [D + 1, S, C]."""

    weights: Tensor
    losses: Tensor  # [S]
    gradient: Tensor  # [D + 1, S, C]
    curvature: Tensor  # [S], mean of p * (1 - p)

    def chosen(self, which: Tensor) -> "_Point":
        return _Point(
            self.weights[:, which],
            self.losses[which],
            self.gradient[:, which],
            self.curvature[which],
        )


def fit(
    inputs: Tensor,
    labels: Tensor,
    strengths: Tensor,
    num_classes: int,
    *,
    tolerance: float = 1e-12,
    max_iterations: int = 1000,
) -> Fits:
    """Fit all strengths, on the device of the inputs.

    Args:
        inputs: [N, D], standardised features.
        labels: [N] classes, or [N, C] with 1 for yes, -1 for no, 0 for rows that do not count.
        strengths: [S].
        num_classes: C; classes without pictures are never predicted.
        tolerance: Largest component of the gradient at which a fit stops.
        max_iterations: Maximum number of iterations.
    """
    inputs, strengths = inputs.double(), strengths.to(inputs.device, torch.float64)
    problem = _Problem(inputs, labels.to(inputs.device), num_classes)
    found = _all_strengths(problem, strengths, tolerance, max_iterations)
    weights, bias = problem.unrotated(found.point.weights)
    return Fits(
        weights,
        bias,
        found.point.losses,
        found.point.gradient.abs().amax(dim=(0, 2)),
        found.num_iterations,
        found.converged,
    )


def _all_strengths(
    problem: "_Problem", strengths: Tensor, tolerance: float, max_iterations: int
) -> "_Minima":
    """Fit strengths in waves: some far apart, then those between them, from interpolated starts."""
    width, classes = problem.inputs.shape[1], problem.num_classes
    found: _Minima | None = None
    order: list[int] = []
    for wave in waves(strengths):
        own = strengths[wave]
        start = strengths.new_zeros(width, len(wave), classes)
        if found is not None:
            start = _interpolated(found.point.weights, strengths[order].log(), own.log())
        minima = _minimise(problem, start, own, tolerance, max_iterations)
        found = minima if found is None else found.with_others(minima)
        order += wave
    assert found is not None, "there is a strength"
    return found.chosen(torch.tensor(order, device=strengths.device).argsort())


def waves(strengths: Tensor) -> list[list[int]]:
    """Return the indices of the strengths in the order in which they are fitted.

    The first wave has every eighth strength and the ends, each later one those halfway between.
    """
    by_size = strengths.argsort().tolist()
    last = len(by_size) - 1
    done = sorted({*range(0, last + 1, FIRST_STRIDE), last})
    found, stride = [done], FIRST_STRIDE // 2
    while stride:
        wave = [i for i in range(0, last + 1, stride) if i not in done]
        done = sorted([*done, *wave])
        found += [wave] if wave else []
        stride //= 2
    return [[by_size[i] for i in wave] for wave in found]


def _interpolated(weights: Tensor, places: Tensor, wanted: Tensor) -> Tensor:
    """Return polynomials through the nearest known weights at other places, [D + 1, wanted, C].

    Args:
        weights: [D + 1, known, C].
        places: [known], all different.
        wanted: [wanted].
    """
    count = min(KNOTS, len(places))
    nearest = (wanted[:, None] - places).abs().topk(count, largest=False).indices
    knots = places[nearest]  # [wanted, count]
    shares = torch.ones_like(knots)
    for i in range(count):
        for j in range(count):
            if i != j:
                shares[:, i] *= (wanted - knots[:, j]) / (knots[:, i] - knots[:, j])
    return torch.einsum("dwkc,wk->dwc", weights[:, nearest], shares)


class _Problem:
    """Pictures on their principal axes, and the loss of weights."""

    def __init__(self, inputs: Tensor, labels: Tensor, num_classes: int) -> None:
        variances, axes = torch.linalg.eigh(inputs.T @ inputs)
        kept = variances > NULL_AXIS * variances[-1]
        self.axes = axes[:, kept]  # [D, kept]
        self.inputs = functional.pad(inputs @ self.axes, (0, 1), value=1.0)  # The bias is last.
        self.squares = self.inputs.square().sum(dim=0)  # [kept + 1]
        self.is_multi_label = labels.ndim == 2
        self.labels = labels
        self.num_classes = num_classes

    def unrotated(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return weights [S, D, C] and biases [S, C] for the original features."""
        return (self.axes @ weights[:-1].transpose(0, 1)), weights[-1]

    def decay(self, strengths: Tensor) -> Tensor:
        """Return the strengths as [D + 1, S, 1]: the bias has none."""
        decay = strengths.expand(len(self.squares), -1).clone()
        decay[-1] = 0
        return decay[:, :, None]

    def at(self, weights: Tensor, strengths: Tensor) -> _Point:
        """Return losses and gradients; the two large matrix products are here."""
        width, count, classes = weights.shape
        stacked = weights.reshape(width, count * classes)
        losses, gradient = weights.new_zeros(count), torch.zeros_like(stacked)
        curvature = weights.new_zeros(count)
        rows = max(64, CHUNK_LOGITS // (count * classes))
        for inputs, labels in zip(self.inputs.split(rows), self.labels.split(rows), strict=True):
            logits = (inputs @ stacked).view(len(inputs), count, classes)
            if self.is_multi_label:
                shares = self._binary(logits, labels, losses, curvature)
            else:
                shares = self._multinomial(logits, labels, losses, curvature)
            gradient.addmm_(inputs.T, shares.view(len(inputs), count * classes))
        number = len(self.inputs)
        decayed = self.decay(strengths) * weights
        losses = (losses + 0.5 * (decayed * weights).sum(dim=(0, 2))) / number
        full = (gradient.view_as(weights) + decayed) / number
        return _Point(weights, losses, full, curvature / (number * classes))

    @staticmethod
    def _multinomial(logits: Tensor, labels: Tensor, losses: Tensor, curvature: Tensor) -> Tensor:
        """Add up the losses; return the gradient with respect to the logits."""
        logits -= logits.amax(dim=2, keepdim=True)
        own = labels.view(-1, 1, 1).expand(-1, logits.shape[1], 1)
        losses -= logits.gather(2, own).sum(dim=(0, 2))
        shares = logits.exp_()
        total = shares.sum(dim=2, keepdim=True)
        losses += total.log().sum(dim=(0, 2))
        shares /= total
        curvature += (shares * (1 - shares)).sum(dim=(0, 2))
        shares.scatter_add_(2, own, shares.new_full((), -1.0).expand_as(own))
        return shares

    @staticmethod
    def _binary(logits: Tensor, labels: Tensor, losses: Tensor, curvature: Tensor) -> Tensor:
        """The same for several labels per picture."""
        signs = labels.to(logits.dtype)[:, None]  # [n, 1, C]; 0 does not count.
        counts = signs.abs()
        losses += (counts * functional.softplus(-signs * logits)).sum(dim=(0, 2))
        shares = logits.sigmoid()
        curvature += (counts * shares * (1 - shares)).sum(dim=(0, 2))
        return counts * shares - signs.clamp(min=0)


class _Minima(NamedTuple):
    """Where the fits of several strengths ended."""

    point: _Point
    num_iterations: Tensor  # [S]
    converged: Tensor  # [S]

    def chosen(self, which: Tensor) -> "_Minima":
        host = which.cpu()
        return _Minima(self.point.chosen(which), self.num_iterations[host], self.converged[host])

    def with_others(self, other: "_Minima") -> "_Minima":
        points = (
            torch.cat(pair, dim=1 if pair[0].ndim == 3 else 0)
            for pair in zip(self.point, other.point, strict=True)
        )
        return _Minima(
            _Point(*points),
            torch.cat([self.num_iterations, other.num_iterations]),
            torch.cat([self.converged, other.converged]),
        )


def _minimise(
    problem: _Problem, start: Tensor, strengths: Tensor, tolerance: float, max_iterations: int
) -> _Minima:
    """Run L-BFGS from a start [D + 1, S, C]."""
    point = problem.at(start, strengths)
    done = _Point(*(value.clone() for value in point))
    num_iterations = torch.zeros(len(strengths), dtype=torch.int64)
    converged = torch.zeros(len(strengths), dtype=torch.bool)
    active = torch.arange(len(strengths), device=start.device)
    memory: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=MEMORY)
    for iteration in range(1, max_iterations + 1):
        own = strengths[active]
        direction = -_times_inverse_hessian(problem, point, own, memory)
        following = _step(problem, point, direction, own)
        step, change = following.weights - point.weights, following.gradient - point.gradient
        scale = (step * change).sum(dim=(0, 2))
        memory.append((step, change, torch.where(scale > 0, 1 / scale, 0)))
        limit = torch.maximum(point.losses.abs(), following.losses.abs()).clamp(min=1)
        stops = (following.gradient.abs().amax(dim=(0, 2)) <= tolerance) | (
            point.losses - following.losses <= MIN_DECREASE * limit
        )
        point = following
        num_iterations[active.cpu()] = iteration
        if bool(stops.any()) or iteration == max_iterations:
            for whole, part in zip(done, point, strict=True):
                whole.index_copy_(1 if whole.ndim == 3 else 0, active, part)
            converged[active[stops].cpu()] = True
            if bool(stops.all()):
                break
            active, point = active[~stops], point.chosen(~stops)
            memory = deque(
                ((s[:, ~stops], y[:, ~stops], r[~stops]) for s, y, r in memory), maxlen=MEMORY
            )
    return _Minima(done, num_iterations, converged)


def _times_inverse_hessian(
    problem: _Problem,
    point: _Point,
    strengths: Tensor,
    memory: deque[tuple[Tensor, Tensor, Tensor]],
) -> Tensor:
    """Return the product of L-BFGS's inverse Hessian with the gradient, [D + 1, S, C]."""
    diagonal = (
        problem.squares[:, None, None] * point.curvature[:, None] + problem.decay(strengths)
    ) / len(problem.inputs)
    inverse = 1 / diagonal.clamp(min=torch.finfo(torch.float64).tiny ** 0.5)
    product, coefficients = point.gradient.clone(), []
    for step, change, ratio in reversed(memory):
        coefficient = ratio * (step * product).sum(dim=(0, 2))
        product -= coefficient[:, None] * change
        coefficients.append(coefficient)
    if memory:
        _, change, ratio = memory[-1]
        size = ratio * (change * inverse * change).sum(dim=(0, 2))
        inverse = inverse * torch.where(size > 0, 1 / size, 1)[:, None]
    product *= inverse
    for (step, change, ratio), coefficient in zip(memory, reversed(coefficients), strict=True):
        other = ratio * (change * product).sum(dim=(0, 2))
        product += (coefficient - other)[:, None] * step
    return product


def _step(problem: _Problem, point: _Point, direction: Tensor, strengths: Tensor) -> _Point:
    """Return the points after a step of each strength; strengths without a lower loss stay."""
    slope = (point.gradient * direction).sum(dim=(0, 2))
    found = _Point(*(value.clone() for value in point))
    pending = torch.arange(len(strengths), device=strengths.device)
    sizes = torch.ones_like(strengths)
    for _ in range(MAX_TRIALS):
        tried = problem.at(
            point.weights[:, pending] + sizes[:, None] * direction[:, pending], strengths[pending]
        )
        start, down = point.losses[pending], slope[pending]
        fits = tried.losses <= start + ARMIJO * sizes * down
        for whole, part in zip(found, tried.chosen(fits), strict=True):
            whole.index_copy_(1 if whole.ndim == 3 else 0, pending[fits], part)
        # The decrease that is left is below the rounding of the loss.
        ends = fits | (-down * sizes <= MIN_DECREASE * start.abs().clamp(min=1))
        if bool(ends.all()):
            break
        bend = tried.losses - start - sizes * down
        shorter = (-0.5 * down * sizes.square() / bend.clamp(min=1e-300)).nan_to_num(nan=0.0)
        sizes = torch.maximum(0.1 * sizes, torch.minimum(0.5 * sizes, shorter))[~ends]
        pending = pending[~ends]
    return found
