"""Command that computes a step again whose loss or gradient was not finite.

    python -m trainer.replay RUN/train/replay-step-000001234.pt [key=value ...]

A training that stops for this reason leaves a replay file: the state before the step, and the
caption ids of its batch. The command works on one process or as many as `torchrun` starts. It
prints whether weights were ruined before the step, and which loss terms, outputs of modules (in the
order in which they were computed) and gradients are not finite. Overrides change the config in the
file; with `device=cpu precision=fp32` a number that is only out of the range of bfloat16 is finite.

Exit code 0: the report is printed; 1: the data cannot be read; 2: the file is not a replay file, or
an override is wrong; 130: Ctrl-C.
"""

if __name__ == "__main__":
    from trainer import cli

    cli.check_temporary_folder()

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

EXPECTED = "expected a replay file, replay-step-*.pt"
ENDINGS = (
    Ending(LostWorkerError, UNFINISHED),
    Ending(LostRankError, UNFINISHED),
    *cli.ENDINGS,
)


def replay(state: State, config: TrainConfig, device: torch.device) -> list[str]:
    """Compute the step of a replay file again.

    Args:
        state: Content of the replay file.
        config: Config of the training, perhaps with overrides.
        device: Device of this rank.

    Returns:
        Lines of the report.

    Raises:
        ConfigError: The state or the ranks do not fit the config, or the data have other captions
            at this step.
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
            "cause is in an earlier step"
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
        lines.append("this time everything is finite")
    return lines


def _check_captions(batch: Batch, expected: Sequence[str]) -> None:
    """Check that the captions of this rank's batch are among those of the replay file."""
    others = sorted(set(hex_ids(batch.caption_ids)) - set(expected))
    if others:
        raise ConfigError(
            f"the data have other captions at this step than the file (first: {others[0]}): "
            "expected the data of the training; set data.images=FOLDER"
        )


def _watch(network: nn.Module, owner: str, broken: list[str]) -> None:
    """Append the names of modules to `broken` when their output is not finite, innermost first."""

    def hook(name: str) -> Any:
        def note(_: nn.Module, __: Any, output: Any) -> None:
            line = f"{owner} {name}"
            if line in broken:  # From another micro-batch, or computed again.
                return
            if any(not tensor.isfinite().all() for tensor in _tensors(output)):
                broken.append(line)

        return note

    for name, module in network.named_modules():
        if name:
            module.register_forward_hook(hook(name))


def _tensors(output: Any) -> list[Tensor]:
    """Return the tensors in the output of a module."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, list | tuple):
        return [tensor for item in output for tensor in _tensors(item)]
    return []


def _config(state: State, path: str, overrides: Sequence[str]) -> TrainConfig:
    """Return the config that a replay file holds, with overrides."""
    stored = stored_config(TrainConfig, state["config"], path)
    text = yaml.safe_dump(stored.written())
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
                raise ConfigError(f"{parsed.file}: {EXPECTED}")
            state = load_checkpoint(parsed.file)
            if "caption_ids" not in state:
                raise ConfigError(f"{parsed.file} is a checkpoint: {EXPECTED}")
            config = _config(state, parsed.file, parsed.overrides)
            return "\n".join(replay(state, config, start_rank(config)))

    return cli.run_command(work, ENDINGS, every_rank=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
