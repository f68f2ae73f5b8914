"""The training command.

    python -m trainer.train CONFIG [key=value ...]
    python -m trainer.launch --nproc-per-node=N -m trainer.train CONFIG [key=value ...]

The command reads `<run>/images` (or `data`) and writes `<run>/train`: `run.yaml`, `metrics.jsonl`
and `checkpoints/`. The same command continues exactly from the newest checkpoint, or reports that
the training is done. Ctrl-C, SIGTERM and SIGUSR1 save a checkpoint first. The exit code
(`transforms.core.exit_codes`) tells whether to run the command again, the last line why and how.

`trainer.launch` is `torchrun` with the exit code of the training. `torchrun` works, too, but exits
with 1 for any failure, forwards SIGUSR1 only with `--signals-to-handle=SIGTERM,SIGINT,SIGUSR1`, and
kills the ranks 30 s after a signal unless `--shutdown-timeout=SECONDS` gives more time to save.
"""

if __name__ == "__main__":
    from trainer import cli

    cli.check_temporary_folder()

import contextlib
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence

import torch

from trainer import cli, distributed
from trainer.checkpoints.files import Checkpoint, checkpoints_folder, list_checkpoints
from trainer.checkpoints.resume import check_shared_folder, newest_on_all_ranks
from trainer.cli import Ending
from trainer.config import TrainConfig, data_folder, train_folder
from trainer.data.loader import LostWorkerError
from trainer.distributed import LostRankError
from trainer.objectives.registry import objective_of
from trainer.signals import stop_signals
from trainer.training import nonfinite
from trainer.training.errors import (
    NotFiniteError,
    NothingSavedError,
    RankConfigError,
    RankError,
    StoppedError,
)
from trainer.training.loop import open_knn, run_steps
from trainer.training.progress import Progress
from trainer.training.session import check_ranks, open_samples, rank_session, start_rank
from trainer.training.settings_history import fixed, note_settings
from trainer.training.step import Training
from transforms.core import storage
from transforms.core.config import fields_of_other_choices, load_config
from transforms.core.cpu import SLOW_BFLOAT16, bfloat16_is_slow
from transforms.core.errors import ConfigError, DamagedFileError, StorageError
from transforms.core.exit_codes import NOT_FINITE, RESTART, UNFINISHED, WRONG_CONFIG
from transforms.core.fingerprint import Fingerprint, accept_versions, claim

log = logging.getLogger(__name__)

LIBRARIES = ("pillow", "timm", "torch", "torchvision")
"""Libraries whose versions may change what is learned."""
CONTINUE = "Training is not finished: {}; run the same command to continue."
ENDINGS = (
    Ending(RankConfigError, WRONG_CONFIG, every_rank=True),
    Ending(RankError, UNFINISHED, every_rank=True),
    Ending(StoppedError, RESTART, CONTINUE),
    Ending(NotFiniteError, NOT_FINITE, "Training is not finished: {}"),
    Ending(LostWorkerError, RESTART, CONTINUE, every_rank=True),
    Ending(
        LostRankError,
        RESTART,
        "Training is not finished: {}; once that is fixed, run the same command to continue.",
        every_rank=True,
    ),
    Ending(NothingSavedError, UNFINISHED, CONTINUE.replace(";", ","), every_rank=True),
    # The second Ctrl-C: nothing is saved, but checkpoints are kept.
    Ending(KeyboardInterrupt, RESTART, CONTINUE.replace("{}", "interrupted")),
    *cli.ENDINGS,
)
"""Endings of a training that is not finished. Those with `RESTART` need progress."""
RESTARTING = (StoppedError, LostWorkerError, LostRankError, KeyboardInterrupt)
"""Errors after which the same command may be run again without a change."""


def train(config: TrainConfig, device: torch.device, progress: Progress) -> str:
    """Run all steps that are left.

    Args:
        config: The training.
        device: Device of this rank.
        progress: Progress of this start.

    Returns:
        The last line for the user.

    Raises:
        ConfigError: Settings do not fit each other, the data, or the training in the folder.
        StorageError: Data cannot be read, or results cannot be written.
        DamagedFileError: A shard does not match the index.
        StoppedError: A signal stopped the training.
        NotFiniteError: A loss or gradient is not finite, or was so before with the same settings.
        RankError: One of several ranks could not read its data or write its results.
    """
    check_ranks(config)
    if distributed.rank() == 0:
        _warn(config, device)
    folder = train_folder(config)
    checkpoints = checkpoints_folder(folder)
    samples, knn = distributed.run_on_all_ranks(
        lambda: (open_samples(config), open_knn(config, device))
    )
    _check_batch(config, samples.sampler.num_samples)
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    training = Training(config, device)
    # Settings are claimed after everything that may fail because of them: they may be changed then.
    fields = {**fixed(config), "data": samples.reader.checksum}
    check_shared_folder(checkpoints)
    made_with = claim(
        storage.join(folder, "run.yaml"),
        Fingerprint(fields),
        config.written(),
        retired=fields_of_other_choices(config),
        of_this_version=config.of_this_version,
    )
    with _naming_rank():
        with newest_on_all_ranks(checkpoints) as found:
            if found is not None:
                training.restore(found.state)
                _check_versions(training, found, made_with)
        if training.step == config.steps:
            url = list_checkpoints(checkpoints)[config.steps]
            return f"Trained already: {config.steps} steps, {url}"
        nonfinite.refuse_to_repeat(config, folder, training.step)
        if distributed.rank() == 0:
            note_settings(config, folder, training.step)
        with stop_signals() as stop:
            try:
                url = run_steps(training, samples, knn, folder, stop, progress)
            except NotFiniteError as error:
                raise nonfinite.keep(training, folder, error) from error
    return f"Trained {config.steps} steps: {url}"


def _check_versions(training: Training, found: Checkpoint, begun_with: Mapping[str, str]) -> None:
    """Warn if a training goes on with other libraries than its checkpoint, or refuse it.

    Args:
        training: The training, restored.
        found: Restored checkpoint. Those of earlier versions do not record libraries.
        begun_with: Library versions that `run.yaml` records.

    Raises:
        ConfigError: The libraries differ, and `strict_versions` is set.
    """
    config = training.config
    if training.step == config.steps:
        return
    recorded = found.state.get("versions", begun_with)

    def check() -> None:
        if config.strict_versions or distributed.rank() == 0:
            accept_versions(recorded, found.url, LIBRARIES, config.strict_versions)

    distributed.run_on_all_ranks(check)


@contextlib.contextmanager
def _naming_rank() -> Iterator[None]:
    """Name this rank in errors of storage and data, if there are several ranks."""
    try:
        yield
    except (StorageError, DamagedFileError) as error:
        if distributed.world_size() == 1:
            raise
        raise RankError(f"rank {distributed.rank()}: {error}") from error


def _check_batch(config: TrainConfig, num_samples: int) -> None:
    """Check that no batch needs a caption twice."""
    if config.captions_per_batch > num_samples:
        where = f"{data_folder(config)} holds {num_samples} captions"
        if config.data.num_captions is not None:
            where = f"data.num_captions is {num_samples}"
        raise ConfigError(
            f"captions_per_batch is {config.captions_per_batch}, but {where}: expected at most "
            "that many"
        )


def _warn(config: TrainConfig, device: torch.device) -> None:
    """Log settings that have no effect, or another one than they seem to have."""
    if device.type == "cpu" and config.precision == "bf16" and bfloat16_is_slow():
        log.warning(SLOW_BFLOAT16, "precision=fp32")
    for warning in objective_of(config).warnings(config):
        log.warning("%s", warning)


def main(arguments: Sequence[str]) -> int:
    """Run the command; return its exit code."""
    parser = cli.command_parser(
        "trainer.train", "Train an encoder on the image shards of a run.", TrainConfig
    )
    cli.add_config_arguments(parser, "config", "YAML file of the training")
    parsed = parser.parse_args(arguments)
    cli.show_log()
    progress = Progress()

    def work() -> str:
        with progress.needed_after(*RESTARTING), rank_session():
            config = load_config(TrainConfig, parsed.config, parsed.overrides)
            return train(config, start_rank(config), progress)

    return cli.run_command(work, ENDINGS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
