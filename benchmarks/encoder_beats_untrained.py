"""Scores of trained encoders over several seeds, compared with untrained encoders.

    python benchmarks/encoder_beats_untrained.py --data runs/demo/images [--seeds 0 1 2]

Trains the demo's encoder once per seed on the same image shards, scores each on the built-in test
sets, and prints mean and standard deviation over the seeds, next to those of untrained encoders of
the same shape. Finished trainings and scores are kept in --out and not repeated.
"""

import argparse
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from transforms.core.scores import FILE_NAME, Score, decode_scores

HEADER = ("data set", "protocol", "pixels", "untrained", "trained", "gain", "gain / spread")


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", required=True, help="folder or URL of a complete images stage")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--train-config", default="trainer/configs/demo.yaml")
    parser.add_argument("--evaluate-config", default="trainer/configs/demo-evaluate.yaml")
    parser.add_argument("--out", type=Path, default=Path("runs/encoder-beats-untrained"))
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="change settings of the training"
    )
    options = parser.parse_args(arguments)
    runs = []
    for seed in options.seeds:
        run = options.out / f"seed-{seed}"
        own = [f"run={run}", f"seed={seed}"]
        training = [options.train_config, *own, f"data.images={options.data}", *options.overrides]
        call("trainer.train", *training)
        call("trainer.evaluate", "all", options.evaluate_config, *own)
        runs.append(decode_scores((run / "scores" / FILE_NAME).read_bytes()))
    print()
    print(" | ".join(HEADER))
    for line in summary(runs):
        print(" | ".join(line))
    return 0


def call(module: str, *arguments: str) -> None:
    """Run one of the project's commands; an error ends the benchmark."""
    subprocess.run([sys.executable, "-m", module, *arguments], check=True)


def summary(runs: Sequence[list[Score]]) -> list[list[str]]:
    """Return a line per data set and protocol: mean ± standard deviation over all seeds."""
    values: dict[tuple[str, str], dict[str, list[float]]] = {}
    for scores in runs:
        for score in scores:
            by_encoder = values.setdefault((score.dataset, score.protocol), {})
            by_encoder.setdefault(score.encoder, []).extend(score.values)
    lines = []
    for (dataset, protocol), by_encoder in sorted(values.items()):
        trained, untrained = by_encoder["trained"], by_encoder["untrained"]
        gain = statistics.mean(trained) - statistics.mean(untrained)
        spread = (deviation(trained) ** 2 + deviation(untrained) ** 2) ** 0.5
        pixels = f"{statistics.mean(by_encoder['pixels']):.1f}" if "pixels" in by_encoder else ""
        ratio = f"{gain / spread:.1f}" if spread else ""
        shown = [f"{statistics.mean(v):.1f} ± {deviation(v):.1f}" for v in (untrained, trained)]
        lines.append([dataset, protocol, pixels, *shown, f"{gain:+.1f}", ratio])
    return lines


def deviation(values: Sequence[float]) -> float:
    """Return the standard deviation of a sample; 0 for a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
