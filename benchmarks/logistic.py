"""Logistic regression with 45 L2 strengths: all at once, beside scikit-learn's loop over them.

    OMP_NUM_THREADS=1 python -m benchmarks.logistic [--pictures 10000] [--width 384] [--classes 100]
        [--every 4]

Both fit the same standardised features in float64 to a tolerance of 1e-12, with at most 1,000
iterations. The features are class means plus noise whose variance falls with a power of the axis,
rotated at random, as features of encoders are correlated. Prints the seconds (wall clock and
processor), the iterations, and the largest difference between the losses.
"""

import argparse
import time
import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from trainer.evaluate.protocols import regression
from trainer.evaluate.protocols.logistic import LogisticConfig


def features(
    count: int, width: int, classes: int, decay: float
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return standardised features [N, D] and labels [N].

    Args:
        count: Pictures.
        width: Features of each.
        classes: Number of classes.
        decay: The deviation along axis number i is i ** -decay.
    """
    generator = np.random.default_rng(0)
    deviations = np.arange(1, width + 1) ** -decay
    rotation = np.linalg.qr(generator.normal(size=(width, width)))[0]
    centres = 0.35 * generator.normal(size=(classes, width)) * deviations
    labels = np.arange(count) % classes
    values = (centres[labels] + generator.normal(size=(count, width)) * deviations) @ rotation
    return (values - values.mean(axis=0)) / values.std(axis=0), labels


def loss(
    values: NDArray[np.float64], labels: NDArray[np.int64], model: LogisticRegression
) -> float:
    """Return the minimised mean of a fit of scikit-learn."""
    logits = torch.from_numpy(values @ model.coef_.T + model.intercept_)
    entropy = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels))
    return float(entropy) + float((model.coef_**2).sum() / model.C / 2 / len(values))


def main() -> None:
    """Run both and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--decay", type=float, default=0.5)
    parser.add_argument("--every", type=int, default=1, help="scikit-learn fits every n-th only")
    options = parser.parse_args()
    config = LogisticConfig()
    values, labels = features(options.pictures, options.width, options.classes, options.decay)
    strengths = config.strengths()

    started, cpu = time.perf_counter(), time.process_time()
    fits = regression.fit(
        torch.from_numpy(values),
        torch.from_numpy(labels),
        torch.tensor(strengths, dtype=torch.float64),
        options.classes,
        tolerance=config.tolerance,
        max_iterations=config.max_iterations,
    )
    ours = time.perf_counter() - started, time.process_time() - cpu

    iterations, differences = 0, []
    theirs = np.zeros(2)
    compared = range(0, len(strengths), options.every)
    for number in compared:
        started, cpu = time.perf_counter(), time.process_time()
        model = LogisticRegression(
            C=1 / strengths[number], tol=config.tolerance, max_iter=config.max_iterations
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(values, labels)
        theirs += time.perf_counter() - started, time.process_time() - cpu
        iterations += int(model.n_iter_.max())
        differences.append(float(fits.losses[number]) - loss(values, labels, model))
    theirs *= len(strengths) / len(compared)
    iterations = round(iterations * len(strengths) / len(compared))
    print(f"{options.pictures} x {options.width}, {options.classes} classes, decay {options.decay}")
    print(f"threads: {torch.get_num_threads()}; strengths: {len(strengths)}")
    if options.every > 1:
        print(f"scikit-learn: {len(compared)} strengths, scaled to {len(strengths)}")
    row = "{:14} {:9.1f} s {:9.1f} s of processor {:7d} iterations"
    print(row.format("all at once", *ours, int(fits.num_iterations.sum())))
    print(row.format("scikit-learn", *theirs, iterations))
    print(f"ratio: {theirs[0] / ours[0]:.1f} (wall clock), {theirs[1] / ours[1]:.1f} (processor)")
    print(f"loss minus scikit-learn's: {min(differences):.1e} to {max(differences):.1e}")
    print(f"converged: {int(fits.converged.sum())} of {len(strengths)}")


if __name__ == "__main__":
    main()
