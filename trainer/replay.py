"""Looks into a step whose loss or gradient was not finite: where do the numbers break?

    python -m trainer.replay RUN/train/replay-step-000001234.pt [key=value ...]

A training that stops for that reason leaves such a file: the state before the step, and the caption
ids of its batch. The step is computed again from them, on one process or as many as `torchrun`
starts, and the report says whether weights were ruined before, and which loss terms, which modules'
outputs (the first in the order in which they were computed) and which gradients are not finite.
Overrides change the config that is in the file: `device=cpu precision=fp32` tells a number that is
out of bfloat16's reach from one that is wrong.

Exit code 0: the report is printed; 2: the file is none, or an override is wrong; 1: the data
cannot be read.
"""

import contextlib
import sys
from collections.abc import Sequence
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from trainer import cli
from trainer.checkpoints.files import State, load_checkpoint
from trainer.cli import Ending
from trainer.config import TrainConfig
from trainer.data.batch import Batch, hex_ids
from trainer.data.loader import LostWorkerError
from trainer.distributed import LostRankError
from trainer.training.nonfinite import ABSURD, few, ruined_weights
from trainer.training.session import (
    check_ranks,
    open_samples,
    rank_batches,
    rank_session,
    start_rank,
)
from trainer.training.step import Training
from transforms.core.config import parse_config, stored_config
from transforms.core.errors import ConfigError
from transforms.core.exit_codes import UNFINISHED

ENDINGS = (
    Ending(LostWorkerError, UNFINISHED),
    Ending(LostRankError, UNFINISHED),
    *cli.ENDINGS,
)


def replay(state: State, config: TrainConfig, device: torch.device) -> list[str]:
    """Compute the step of a replay file again.

    Args:
        state: What the file holds.
        config: Of the training.
        device: Of this rank.

    Returns:
        The lines of the report.

    Raises:
        ConfigError: The state or the ranks do not fit the config, or the data has other captions
            there.
    """
    check_ranks(config)
    training = Training(config, device)
    training.restore(state)
    steps = range(training.step, training.step + 1)
    with contextlib.closing(rank_batches(config, open_samples(config), steps)) as batches:
        batch = next(batches)
    _check_captions(batch, state["caption_ids"])
    broken: list[str] = []
    _watch(training.student, "student", broken)
    if training.teacher is not None:
        _watch(training.teacher, "teacher", broken)
    terms = training.objective.backward(batch, training.step)
    lines = [f"step {training.step}, {len(batch.positions)} captions on this rank"]
    if ruined := list(ruined_weights(state)):
        lines.append(
            f"weights were not finite, or above {ABSURD:g}, before this step ({few(ruined)}): the "
            "cause lies in an earlier one"
        )
    lines += [f"loss term {name}: {float(value):.6g}" for name, value in terms.items()]
    gradients = [
        name
        for name, parameter in training.student.named_parameters()
        if parameter.grad is not None and not parameter.grad.isfinite().all()
    ]
    for what, names in (("output", broken), ("gradient", gradients)):
        if names:
            lines.append(f"not finite: the {what} of {few(names)}")
    if not broken and not gradients:
        lines.append("everything is finite this time")
    return lines


def _check_captions(batch: Batch, expected: Sequence[str]) -> None:
    strange = sorted(set(hex_ids(batch.caption_ids)) - set(expected))
    if strange:
        raise ConfigError(
            f"the data has other captions at this step than the file names (first: {strange[0]}): "
            "expected the data of the training; say where with data=FOLDER"
        )


def _watch(network: nn.Module, owner: str, broken: list[str]) -> None:
    """Note the modules whose output is not finite, innermost first."""

    def hook(name: str) -> Any:
        def note(_: nn.Module, __: Any, output: Any) -> None:
            line = f"{owner} {name}"
            if line in broken:  # Of another piece, or computed again.
                return
            if any(not tensor.isfinite().all() for tensor in _tensors(output)):
                broken.append(line)

        return note

    for name, module in network.named_modules():
        if name:
            module.register_forward_hook(hook(name))


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, list | tuple):
        return [tensor for item in output for tensor in _tensors(item)]
    return []


def _config(state: State, path: str, overrides: Sequence[str]) -> TrainConfig:
    """Return the config that a replay file holds, with overrides."""
    stored = stored_config(TrainConfig, state["config"], path)
    text = yaml.safe_dump(stored.model_dump(mode="json"))
    return parse_config(TrainConfig, text, path, overrides)


def main(arguments: Sequence[str]) -> int:
    """Run the command; return its exit code."""
    parser = cli.command_parser(
        "trainer.replay",
        "Compute a step again whose loss or gradient was not finite.",
        TrainConfig,
    )
    cli.add_config_arguments(parser, "file", "replay-step-*.pt of a training")
    parsed = parser.parse_args(arguments)
    cli.show_log()

    def work() -> str:
        with rank_session():
            if not parsed.file.endswith(".pt"):
                raise ConfigError(f"{parsed.file} is no replay file: expected a replay-step-*.pt")
            state = load_checkpoint(parsed.file)
            if "caption_ids" not in state:
                raise ConfigError(f"{parsed.file} is a checkpoint: expected a replay-step-*.pt")
            config = _config(state, parsed.file, parsed.overrides)
            return "\n".join(replay(state, config, start_rank(config)))

    return cli.run_command(work, ENDINGS, every_rank=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
