"""The training command.

    python -m trainer.train CONFIG [key=value ...]
    torchrun --nproc-per-node=N -m trainer.train CONFIG [key=value ...]

It reads `<run>/images` (or `data`) and writes `<run>/train`: `run.yaml`, `metrics.jsonl` and
`checkpoints/`. Run again, it continues from the newest checkpoint, exactly; when it is done it says
so. Ctrl-C and SIGTERM save first. Exit code 0: all steps are done; 2: a setting is wrong; 1: steps
are left, and the last line says why and how to go on.
"""

import argparse
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence

import torch

from trainer import checkpoint, distributed
from trainer.config import TrainConfig, data_folder, train_folder
from trainer.data import ShardReader
from trainer.monitor import MetricsLog
from trainer.stream import CroppedSamples, CropSpec, SampleOrder, batches
from trainer.training import Training, TrainingError
from transforms.core import storage
from transforms.core.config import ConfigError, describe, fingerprint_fields, load_config
from transforms.core.fingerprint import Fingerprint, claim
from transforms.core.progress import bar
from transforms.core.shards import DamagedFileError

log = logging.getLogger(__name__)


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
    checkpoints = checkpoint.checkpoints_folder(folder)
    samples = open_samples(config)
    fields = {**fingerprint_fields(config), "data": samples.reader.checksum}
    claim(storage.join(folder, "run.yaml"), Fingerprint(fields), config.model_dump(mode="json"))
    finished = checkpoint.list_steps(checkpoints).get(config.steps)
    if finished:
        return f"Trained already: {config.steps} steps, {finished}"

    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    training = Training(config, device)
    state = checkpoint.load_newest(checkpoints)
    if state is not None:
        training.restore(state)
    with _signals() as stop:
        url = _loop(training, samples, folder, stop)
    return f"Trained {config.steps} steps: {url}"


def _loop(training: Training, samples: CroppedSamples, folder: str, stop: list[str]) -> str:
    """Step until done; returns the last checkpoint."""
    config = training.config
    main = distributed.rank() == 0
    images = config.captions_per_batch * config.images_per_caption
    metrics = MetricsLog(storage.join(folder, "metrics.jsonl"), training.step) if main else None
    stream = batches(
        samples,
        config.loader,
        first_step=training.step,
        last_step=config.steps,
        captions_per_batch=config.captions_per_batch,
        rank=distributed.rank(),
        ranks=distributed.world_size(),
    )
    url = ""
    saved_at = logged_at = time.monotonic()
    logged_step = training.step
    progress = None
    if main:
        progress = bar(config.steps * images, "images", "training", initial=training.step * images)
    with progress or contextlib.nullcontext():
        for batch in stream:
            values = training.update(batch)
            step = training.step
            if progress is not None:
                shown = {"loss": f"{values['loss']:.3f}", "lr": f"{values['learning_rate']:.1e}"}
                progress.set_postfix(shown, refresh=False)
                progress.update(images)
            now = time.monotonic()
            done = step == config.steps
            if metrics is not None and ((step - 1) % config.log_every == 0 or done):
                rate = (step - logged_step) * images / (now - logged_at)
                metrics.write(step - 1, {**values, "images_per_s": rate})
                logged_at, logged_step = now, step
            stopped = distributed.any_rank(bool(stop), training.objective.device)
            if metrics is not None and (
                done or stopped or now - saved_at >= config.checkpoint.every_s
            ):
                metrics.flush()
                url = checkpoint.save(
                    training.state(),
                    checkpoint.checkpoints_folder(folder),
                    keep=config.checkpoint.keep,
                )
                saved_at = time.monotonic()
            if stopped and not done:
                who = stop[0] if stop else "a signal to another rank"
                raise TrainingError(f"stopped by {who}, saved at step {step} of {config.steps}")
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
    )
    return CroppedSamples(reader, order, spec, config.seed)


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


@contextlib.contextmanager
def _signals() -> Iterator[list[str]]:
    """Collect the names of stop signals; a second one acts as if nobody had listened."""
    received: list[str] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def receive(number: int, _: object) -> None:
        received.append(signal.Signals(number).name)
        restore()

    for number in before:
        signal.signal(number, receive)
    try:
        yield received
    finally:
        restore()


def _device(config: TrainConfig, local_rank: int) -> torch.device:
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
    go_on = "run the same command to go on"
    try:
        config = load_config(TrainConfig, parsed.config, parsed.overrides)
        device = _device(config, int(os.environ.get("LOCAL_RANK", "0")))
        if "WORLD_SIZE" in os.environ:
            distributed.start(device)
        line, code = train(config, device), 0
    except ConfigError as error:
        line, code = str(error), 2
    except (storage.StorageError, DamagedFileError) as error:
        line, code = str(error), 1
    except TrainingError as error:
        line, code = f"Training is not finished: {error}; {go_on}.", 1
    except KeyboardInterrupt:
        line, code = f"Training is not finished: interrupted; {go_on}.", 1
    finally:
        distributed.stop()
    if speaks:
        print(line, file=sys.stderr if code else sys.stdout)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
