"""The training command.

    python -m trainer.train CONFIG [key=value ...]
    torchrun --nproc-per-node=N -m trainer.train CONFIG [key=value ...]

It reads `<run>/images` (or `data`) and writes `<run>/train`: `run.yaml`, `metrics.jsonl` and
`checkpoints/`. Run again, it continues from the newest checkpoint, exactly; when it is done it says
so. Ctrl-C, SIGTERM and SIGUSR1 save first. Exit code 0: all steps are done; 2: a setting is wrong;
75: a signal stopped it, start it again; 1: steps are left, and the last line says why and how to go
on. (`torchrun` itself exits with 1 whatever code its processes had.)
"""

import argparse
import contextlib
import logging
import os
import sys
import time
from collections.abc import Sequence

import torch

from trainer import distributed
from trainer.checkpoint import (
    CheckpointWriter,
    checkpoints_folder,
    list_steps,
    load_newest,
    write,
)
from trainer.config import TrainConfig, data_folder, images_per_step, train_folder
from trainer.data import ShardReader
from trainer.monitor import Monitor
from trainer.objectives import target_reader
from trainer.order import SampleOrder
from trainer.pace import Clock
from trainer.probe import Probe
from trainer.signals import stop_signals
from trainer.stream import CroppedSamples, CropSpec, batches
from trainer.training import NotFiniteError, Training, TrainingError
from transforms.core import storage
from transforms.core.config import ConfigError, describe, fingerprint_fields, load_config
from transforms.core.fingerprint import Fingerprint, claim
from transforms.core.shards import DamagedFileError

log = logging.getLogger(__name__)

OK, UNFINISHED, WRONG_CONFIG, RESTART = 0, 1, 2, 75
"""Exit codes; 75 is what `sysexits.h` calls a temporary failure: start me again."""


class StoppedError(TrainingError):
    """A signal stopped it; everything is saved."""


def train(config: TrainConfig, device: torch.device) -> str:
    """Run all steps that are left.

    Args:
        config: The training.
        device: Of this rank.

    Returns:
        The last line for the person who started it.

    Raises:
        ConfigError: Settings do not fit each other, the data, or what the folder holds.
        storage.StorageError: Data cannot be read, or results cannot be written.
        DamagedFileError: A shard is not what the index says.
        TrainingError: A signal or a loss that is not finite stopped it.
    """
    _check_ranks(config)
    _warn(config)
    folder = train_folder(config)
    checkpoints = checkpoints_folder(folder)
    samples = open_samples(config)
    fields = {**fingerprint_fields(config), "data": samples.reader.checksum}
    claim(storage.join(folder, "run.yaml"), Fingerprint(fields), config.model_dump(mode="json"))
    finished = list_steps(checkpoints).get(config.steps)
    if finished:
        return f"Trained already: {config.steps} steps, {finished}"

    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    training = Training(config, device)
    state = load_newest(checkpoints)
    if state is not None:
        training.restore(state)
    try:
        with stop_signals() as stop:
            url = _loop(training, samples, folder, stop)
    except NotFiniteError as error:
        replay = _keep_for_replay(training, folder, error)
        raise TrainingError(
            f"{error}; look into it with `python -m trainer.replay {replay}`"
        ) from error
    return f"Trained {config.steps} steps: {url}"


def _loop(training: Training, samples: CroppedSamples, folder: str, stop: list[str]) -> str:
    """Step until done; returns the last checkpoint."""
    config, first = training.config, training.step
    images = config.captions_per_batch * images_per_step(config)
    stream = batches(
        samples,
        config.loader,
        first_step=first,
        last_step=config.steps,
        captions_per_batch=config.captions_per_batch,
        rank=distributed.rank(),
        ranks=distributed.world_size(),
    )
    probe = _probe(training)
    main = distributed.rank() == 0
    clock = Clock(config, training.objective.device, first)
    saved_at = time.monotonic()
    with (
        _monitor(config, folder, first) if main else contextlib.nullcontext() as monitor,
        CheckpointWriter(checkpoints_folder(folder), config.checkpoint) as writer,
    ):
        while training.step < config.steps:
            with clock.waiting():
                batch = next(stream)
            training.update(batch)
            step = training.step
            if monitor is not None:
                monitor.advance(images)
            due = main and config.checkpoint.is_due(step, time.monotonic() - saved_at)
            stopped, due = distributed.any_rank(bool(stop), due)
            done = step == config.steps
            logs = done or (step - 1) % config.log_every == 0
            probes = probe is not None and (done or step % (config.monitor.knn_every or 1) == 0)
            if logs or probes or stopped or due:
                values = training.values()
                if probe is not None and probes:
                    values["knn"] = probe.accuracy(training.encoder)
                if monitor is not None and (logs or probes):
                    monitor.write(step - 1, {**values, **clock.lap(step).values()})
            if done or stopped or due:
                state = training.state()
                if monitor is not None:
                    monitor.flush()
                    writer.save(state)
                saved_at = time.monotonic()
            if stopped and not done:
                writer.wait()
                who = stop[0] if stop else "a signal to another rank"
                raise StoppedError(f"stopped by {who}, saved at step {step} of {config.steps}")
        return writer.wait()


def _monitor(config: TrainConfig, folder: str, step: int) -> Monitor:
    images = config.captions_per_batch * images_per_step(config)
    return Monitor(
        config.monitor,
        folder,
        config.model_dump(mode="json"),
        total=config.steps * images,
        done=step * images,
        step=step,
    )


def _probe(training: Training) -> Probe | None:
    config = training.config
    if config.monitor.knn_every is None:
        return None
    monitor, device = config.monitor, training.objective.device
    return Probe(monitor.knn_dataset, monitor.knn_pictures, config.model, device)


def _keep_for_replay(training: Training, folder: str, error: NotFiniteError) -> str:
    """Save the state before a step that was not finite; returns the URL."""
    state = {**training.state(), "step": error.step, "caption_ids": error.caption_ids}
    state["position"] = error.step * training.config.captions_per_batch
    url = storage.join(folder, f"replay-step-{error.step:09d}.pt")
    if distributed.rank() == 0:
        write(state, url)
    return url


def open_samples(config: TrainConfig) -> CroppedSamples:
    """The data of the training.

    Raises:
        storage.StorageError, ConfigError, DamagedFileError: It is not there or does not fit.
    """
    index_url = storage.join(data_folder(config), "index.parquet")
    reader = ShardReader(
        index_url,
        images_per_caption=config.images_per_caption,
        cache_folder=config.loader.cache_folder,
        cache_bytes=int(config.loader.cache_gib * (1 << 30)),
    )
    if len(reader) == 0:
        raise DamagedFileError(f"index {index_url} lists no samples: there is nothing to train on")
    order = SampleOrder(reader.shard_sizes, config.seed, config.loader.shuffle_shards)
    spec = CropSpec(
        crops=config.crops,
        photometric=config.photometric,
        global_size=config.model.image_size,
        patch_size=config.model.patch_size,
        patch_share=config.objective.masked_patches,
        images_per_caption=config.images_per_caption,
        one_image=images_per_step(config) < config.images_per_caption,
    )
    return CroppedSamples(reader, order, spec, config.seed, target_reader(config))


def _check_ranks(config: TrainConfig) -> None:
    pieces = distributed.world_size() * config.accumulation
    if config.captions_per_batch % pieces:
        raise ConfigError(
            f"captions_per_batch is {config.captions_per_batch}: expected a multiple of {pieces}, "
            f"which is {distributed.world_size()} ranks times accumulation {config.accumulation}"
        )


def _warn(config: TrainConfig) -> None:
    """Say which settings do not do what they seem to."""
    views = config.crops.num_global
    if config.objective.positives == "caption":
        views *= config.images_per_caption
    if views == 1:
        log.warning("No global crop has a positive: images_per_caption and num_global are 1.")
    if config.accumulation > 1 and config.objective.contrastive_head.norm == "bn":
        log.warning("Batch norms see a piece at a time; norm=ln gives the whole batch's gradient.")


def rank_device(config: TrainConfig, local_rank: int) -> torch.device:
    """The device of this process.

    Raises:
        ConfigError: A CUDA device is asked for, and there is none.
    """
    if config.device == "cpu" or (config.device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError("device is 'cuda', but this machine has no usable CUDA device")
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer.train",
        description="Train an encoder on the image shards of a run.",
        epilog="Keys:\n" + describe(TrainConfig),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", help="YAML file of the training")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="change single settings")
    parsed = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    speaks = os.environ.get("RANK", "0") == "0"
    unfinished = "Training is not finished: {}; run the same command to go on."
    try:
        config = load_config(TrainConfig, parsed.config, parsed.overrides)
        device = rank_device(config, int(os.environ.get("LOCAL_RANK", "0")))
        if "WORLD_SIZE" in os.environ:
            distributed.start(device)
        line, code = train(config, device), OK
    except ConfigError as error:
        line, code = str(error), WRONG_CONFIG
    except (storage.StorageError, DamagedFileError) as error:
        line, code = str(error), UNFINISHED
    except StoppedError as error:
        line, code = unfinished.format(error), RESTART
    except TrainingError as error:
        line, code = f"Training is not finished: {error}", UNFINISHED
    except distributed.LostRankError as error:
        line, code, speaks = unfinished.format(error), UNFINISHED, True
    except KeyboardInterrupt:
        line, code = unfinished.format("interrupted"), RESTART
    finally:
        distributed.stop()
    if speaks:
        print(line, file=sys.stderr if code else sys.stdout)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
