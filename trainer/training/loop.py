"""The training loop: steps, and what happens between them on some or all ranks.

No rank leaves with an error while another still writes: `torchrun` ends those who are left as soon
as one has left that way. So after what is written last all wait for each other.

Who is told to stop has little time. There is no look at real pictures then. If a checkpoint is
being written, that one is finished and no other begun: the steps since are computed again, exactly.
"""

import contextlib
import time

import torch

from trainer import distributed
from trainer.checkpoints.files import checkpoints_folder
from trainer.checkpoints.writer import CheckpointWriter
from trainer.config import TrainConfig, batch_images, is_skipped
from trainer.data.batch import CroppedSamples
from trainer.monitor.knn import Probe
from trainer.monitor.metrics import Monitor
from trainer.training.errors import StoppedError
from trainer.training.session import rank_batches
from trainer.training.step import Training
from trainer.training.throughput import Clock


def run_steps(
    training: Training,
    samples: CroppedSamples,
    probe: Probe | None,
    folder: str,
    stop: list[str],
) -> str:
    """Step until done.

    Args:
        training: As it is at the start.
        samples: Its data.
        probe: From `open_probe`.
        folder: Of the training, where results go.
        stop: Names of the stop signals that came, see `trainer.signals`; looked at in every step.

    Returns:
        The URL of the last checkpoint, written ("" on ranks but the first).

    Raises:
        StoppedError: A signal came, on this rank or another.
        NotFiniteError: A loss or a gradient was not finite.
        StorageError, ConfigError: Data cannot be read, or results cannot be written.
    """
    config, first = training.config, training.step
    steps = range(first, config.steps)
    stream = rank_batches(config, samples, steps)
    first_update = next((step for step in steps if not is_skipped(config, step)), None)
    main = distributed.rank() == 0
    clock = Clock(config, training.objective.device, first)
    saved_at, saved_step = time.monotonic(), first
    with (
        contextlib.closing(stream),
        _monitor(config, folder, first) if main else contextlib.nullcontext() as monitor,
        CheckpointWriter(checkpoints_folder(folder), config.checkpoint) as writer,
    ):
        while training.step < config.steps:
            with clock.waiting():
                batch = next(stream)
            training.update(batch)
            step = training.step
            if monitor is not None:
                monitor.advance(batch_images(config))
            due = main and config.checkpoint.is_due(step, time.monotonic() - saved_at)
            stopped, due, writing = distributed.any_rank(bool(stop), due, writer.is_writing())
            if step - 1 == first_update:  # In it each rank compiles, and now all have.
                distributed.expect_answers_within(config.execution.timeout_s)
            done = step == config.steps
            saves = done or (not writing if stopped else due)
            logs = done or (step - 1) % config.log_every == 0
            looks = done or step % (config.monitor.knn_every or 1) == 0
            probes = probe is not None and looks and not stopped
            if logs or probes or stopped or saves:
                values = training.values()
                if logs or probes:
                    values |= _measured(training, clock, probe if probes else None)
                    if monitor is not None:
                        monitor.write(step - 1, values)
            if saves:
                with clock.paused():
                    distributed.run_on_all_ranks(writer.wait)
                    state = training.state()
                    if monitor is not None:
                        monitor.flush()
                        writer.save(state)
                    del state  # What was spread is whole in it.
                saved_at, saved_step = time.monotonic(), step
            if stopped and not done:
                distributed.run_on_all_ranks(writer.wait)
                who = stop[0] if stop else "a signal to another rank"
                raise StoppedError(
                    f"stopped by {who}, saved at step {saved_step} of {config.steps}"
                )
        return distributed.run_on_all_ranks(writer.wait)


def _measured(training: Training, clock: Clock, probe: Probe | None) -> dict[str, float]:
    """Where there is a probe its score, and the pace without it; all ranks ask together."""
    score = {}
    if probe is not None:
        with clock.paused():
            score["knn"] = probe.accuracy(training.network)
    return {**score, **clock.lap(training.step).values()}


def _monitor(config: TrainConfig, folder: str, step: int) -> Monitor:
    images = batch_images(config)
    return Monitor(
        config.monitor,
        folder,
        config.model_dump(mode="json"),
        total=config.steps * images,
        done=step * images,
        step=step,
    )


def open_probe(config: TrainConfig, device: torch.device) -> Probe | None:
    """What looks at real pictures, None if the config wants no looks.

    Raises:
        ConfigError: There is no such data set.
    """
    monitor = config.monitor
    if monitor.knn_every is None:
        return None
    return Probe(monitor.knn_dataset, monitor.knn_pictures, config.model, device)
