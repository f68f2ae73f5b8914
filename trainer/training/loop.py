"""The training loop: steps, and the work between them on some or all ranks.

`torchrun` ends all remaining ranks once one has left with an error, so no rank may leave while
another one still writes: after the last write all ranks wait for each other.

After a stop signal time is short. Online kNN is skipped. If a checkpoint is being written, that one
is finished and no other is started: the steps since then are computed again, exactly.
"""

import contextlib
import time
from dataclasses import dataclass

import torch

from trainer import distributed
from trainer.checkpoints.files import checkpoints_folder
from trainer.checkpoints.writer import CheckpointWriter
from trainer.config import TrainConfig, batch_images, is_skipped
from trainer.data.batch import CroppedSamples
from trainer.monitor.monitor import Monitor
from trainer.monitor.online_knn import OnlineKNN
from trainer.training import nonfinite
from trainer.training.errors import StoppedError
from trainer.training.progress import Progress
from trainer.training.session import rank_batches
from trainer.training.step import Training
from trainer.training.throughput import ThroughputMeter


@dataclass(frozen=True)
class Due:
    """Work that is due after a step; it is the same on every rank."""

    log: bool
    """Write a line of metrics."""
    knn: bool
    """Evaluate online kNN; its accuracy makes a line of metrics due, too."""
    save: bool
    """Write a checkpoint."""
    stop: bool
    """End the training before its last step."""

    @property
    def check(self) -> bool:
        """Whether to wait for the device and check that all losses so far are finite."""
        return self.log or self.knn or self.save or self.stop


def due_after(
    config: TrainConfig, step: int, *, stopped: bool, checkpoint_due: bool, writing: bool
) -> Due:
    """Return what is due after a step.

    Args:
        config: The training.
        step: Number of finished steps.
        stopped: Whether any rank received a stop signal.
        checkpoint_due: Whether it is time for a checkpoint by the config.
        writing: Whether the last checkpoint is still being written.
    """
    done = step == config.steps
    knn_every = config.monitor.knn_every
    return Due(
        log=done or (step - 1) % config.log_every == 0,
        knn=knn_every is not None and (done or step % knn_every == 0) and not stopped,
        save=done or (not writing if stopped else checkpoint_due),
        stop=stopped and not done,
    )


def run_steps(
    training: Training,
    samples: CroppedSamples,
    knn: OnlineKNN | None,
    folder: str,
    stop: list[str],
    progress: Progress,
) -> str:
    """Run all steps that are left.

    Args:
        training: State of the training at the start.
        samples: Data of the training.
        knn: Online kNN, from `open_knn`.
        folder: Output folder of the training.
        stop: Names of the stop signals received so far, see `trainer.signals`; read in every step.
        progress: Progress of this start; noted when a checkpoint is complete.

    Returns:
        URL of the last checkpoint, which is written ("" on ranks other than the first).

    Raises:
        StoppedError: This rank or another one received a stop signal.
        NotFiniteError: A loss or a gradient was not finite.
        StorageError, ConfigError: Data cannot be read, or results cannot be written.
    """
    config, first = training.config, training.step
    steps = range(first, config.steps)
    first_update = next((step for step in steps if not is_skipped(config, step)), None)
    meter = ThroughputMeter(config, training.objective.device, first)
    saved_at, saved_step = time.monotonic(), first

    with (
        contextlib.closing(rank_batches(config, samples, steps)) as stream,
        _monitor(config, folder, first) as monitor,
        _writer(config, folder, progress) as writer,
    ):
        while training.step < config.steps:
            with meter.waiting():
                batch = next(stream)
            training.update(batch)
            step = training.step
            if monitor is not None:
                monitor.advance(batch_images(config))
            due = _due_on_all_ranks(
                config, step, stop, time.monotonic() - saved_at, writer, progress
            )
            if step - 1 == first_update:  # Every rank has compiled by now.
                distributed.expect_answers_within(config.execution.timeout_s)
            if due.check:
                _report(training, meter, monitor, due, knn if due.knn else None)
            if due.save:
                _save(training, meter, monitor, writer)
                saved_at, saved_step = time.monotonic(), step
            if due.stop:
                distributed.run_on_all_ranks(writer.wait)
                progress.make()
                raise _stopped(stop, saved_step, config.steps)
        return distributed.run_on_all_ranks(writer.wait)


def _writer(config: TrainConfig, folder: str, progress: Progress) -> CheckpointWriter:
    """Return the writer of a training's checkpoints."""

    def written(step: int) -> None:
        progress.make()
        nonfinite.forget(folder, step)

    return CheckpointWriter(checkpoints_folder(folder), config.checkpoint, written)


def _stopped(stop: list[str], saved_step: int, steps: int) -> StoppedError:
    """Return the error about a stop signal, once the checkpoint of a step is written."""
    signal = stop[0] if stop else "a signal to another rank"
    return StoppedError(f"stopped by {signal}, saved at step {saved_step} of {steps}")


def _due_on_all_ranks(
    config: TrainConfig,
    step: int,
    stop: list[str],
    since_save_s: float,
    writer: CheckpointWriter,
    progress: Progress,
) -> Due:
    """Return what is due after a step; rank 0 decides on checkpoints, any rank on a stop.

    All ranks learn of the progress that rank 0 has made.
    """
    checkpoint_due = distributed.rank() == 0 and config.checkpoint.is_due(step, since_save_s)
    mine = (bool(stop), checkpoint_due, writer.is_writing(), progress.made)
    stopped, checkpoint_due, writing, saved = distributed.any_rank(*mine)
    if saved:
        progress.make()
    return due_after(config, step, stopped=stopped, checkpoint_due=checkpoint_due, writing=writing)


def _save(
    training: Training, meter: ThroughputMeter, monitor: Monitor | None, writer: CheckpointWriter
) -> None:
    """Begin to write a checkpoint, once the one before is written and the log is durable."""
    with meter.paused():
        distributed.run_on_all_ranks(writer.wait)
        state = training.state()  # All ranks take part; rank 0, which has the monitor, writes it.
        if monitor is not None:
            monitor.flush()
            writer.save(state)


def _report(
    training: Training,
    meter: ThroughputMeter,
    monitor: Monitor | None,
    due: Due,
    knn: OnlineKNN | None,
) -> None:
    """Check that all steps so far are finite, and write a line of metrics if it is due."""
    values = training.values()
    if due.log or due.knn:
        values |= _measure(training, meter, knn)
        if monitor is not None:
            monitor.write(training.step - 1, values)


def _measure(training: Training, meter: ThroughputMeter, knn: OnlineKNN | None) -> dict[str, float]:
    """Return the throughput, and the accuracy of online kNN, if any; all ranks call together."""
    accuracy = {}
    if knn is not None:
        with meter.paused():
            accuracy["knn"] = knn.accuracy(training.network)
    return {**accuracy, **meter.measure(training.step).values()}


def _monitor(
    config: TrainConfig, folder: str, step: int
) -> contextlib.AbstractContextManager[Monitor | None]:
    """Return the monitor of a training that starts or continues at a step; None but on rank 0."""
    if distributed.rank() != 0:
        return contextlib.nullcontext()
    images = batch_images(config)
    return Monitor(
        config.monitor,
        folder,
        config.written(),
        total=config.steps * images,
        done=step * images,
        step=step,
    )


def open_knn(config: TrainConfig, device: torch.device) -> OnlineKNN | None:
    """Return the online kNN evaluation of a training, None if the config wants none.

    Raises:
        ConfigError: There is no such data set.
    """
    monitor = config.monitor
    if monitor.knn_every is None:
        return None
    return OnlineKNN(monitor.knn_dataset, monitor.knn_pictures, config.model, device)
