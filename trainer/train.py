"""The training command.

    python -m trainer.train CONFIG [key=value ...]
    python -m trainer.launch --nproc-per-node=N -m trainer.train CONFIG [key=value ...]

It reads `<run>/images` (or `data`) and writes `<run>/train`: `run.yaml`, `metrics.jsonl` and
`checkpoints/`. Run again, it continues from the newest checkpoint, exactly; when it is done it says
so. Ctrl-C, SIGTERM and SIGUSR1 save first. The exit code (`transforms.core.exit_codes`) says
whether to start it again, and the last line why and how.

`trainer.launch` is `torchrun` that passes the exit code on. `torchrun` itself works, too, but exits
with 1 whatever its processes said, passes SIGUSR1 on only with
`--signals-to-handle=SIGTERM,SIGINT,SIGUSR1`, and kills 30 s after a signal unless
`--shutdown-timeout=SECONDS` gives more time to save.
"""

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence

import torch

from trainer import distributed
from trainer.checkpoints.files import checkpoints_folder, list_steps
from trainer.checkpoints.resume import check_folder, newest_here
from trainer.config import TrainConfig, data_folder, images_per_step, train_folder
from trainer.data.batch import CroppedSamples, CropSpec
from trainer.data.loader import LostWorkerError
from trainer.data.sampler import ShuffleSampler
from trainer.data.shard_reader import ShardReader
from trainer.signals import ignore_stops, stop_signals
from trainer.training import nonfinite
from trainer.training.loop import StoppedError, open_probe, run_steps
from trainer.training.settings_history import fixed, note_settings
from trainer.training.setup import target_reader
from trainer.training.step import NotFiniteError, Training, TrainingError
from transforms.core import storage
from transforms.core.config import load_config
from transforms.core.config_keys import describe
from transforms.core.cpu import SLOW_BFLOAT16, bfloat16_is_slow
from transforms.core.errors import ConfigError, DamagedFileError, StorageError
from transforms.core.exit_codes import NOT_FINITE, OK, RESTART, UNFINISHED, WRONG_CONFIG
from transforms.core.fingerprint import Fingerprint, claim

log = logging.getLogger(__name__)


class RankError(TrainingError):
    """Storage or data failed on one rank of several; the sentence names it."""


class NoDeviceError(ConfigError):
    """This process has no device, though others may; the sentence is for it to say."""


GO_ON = "Training is not finished: {}; run the same command to go on."
ONCE_MENDED = GO_ON.replace("; ", "; once that is mended, ")
ENDINGS: Sequence[tuple[type[BaseException], int, str, bool]] = (
    (NoDeviceError, WRONG_CONFIG, "{}", True),
    (ConfigError, WRONG_CONFIG, "{}", False),
    (StorageError, UNFINISHED, "{}", False),
    (DamagedFileError, UNFINISHED, "{}", False),
    (RankError, UNFINISHED, "{}", True),
    (StoppedError, RESTART, GO_ON, False),
    (NotFiniteError, NOT_FINITE, "Training is not finished: {}", False),
    (LostWorkerError, RESTART, GO_ON, True),
    (distributed.LostRankError, RESTART, ONCE_MENDED, True),
    (
        torch.OutOfMemoryError,
        WRONG_CONFIG,
        "rank {rank}: the device is out of memory: expected a smaller captions_per_batch, a larger "
        "accumulation, execution.recompute=elementwise or =blocks, or execution.sharding=shard",
        True,
    ),
    (KeyboardInterrupt, RESTART, GO_ON.format("interrupted"), False),
)
"""How a training ends without having finished: the error, the exit code, the last line, and whether
other ranks than the first say it, too. The first that fits counts."""


def train(config: TrainConfig, device: torch.device) -> str:
    """Run all steps that are left.

    Args:
        config: The training.
        device: Of this rank.

    Returns:
        The last line for the person who started it.

    Raises:
        ConfigError: Settings do not fit each other, the data, or what the folder holds.
        StorageError: Data cannot be read, or results cannot be written.
        DamagedFileError: A shard is not what the index says.
        StoppedError, NotFiniteError: A signal or a loss that is not finite stopped it, or would.
        RankError: One of several ranks could not read its data or write.
    """
    check_ranks(config)
    if distributed.rank() == 0:
        _warn(config, device)
    folder = train_folder(config)
    checkpoints = checkpoints_folder(folder)
    samples, probe = distributed.run_on_all_ranks(
        lambda: (open_samples(config), open_probe(config, device))
    )
    _check_batch(config, samples.sampler.num_samples)
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    training = Training(config, device)
    # Only now: settings that fail before may be changed.
    fields = {**fixed(config), "data": samples.reader.checksum}
    check_folder(checkpoints)
    claim(storage.join(folder, "run.yaml"), Fingerprint(fields), config.model_dump(mode="json"))
    with _rank_named():
        with newest_here(checkpoints) as found:
            if found is not None:
                training.restore(found.state)
        if training.step == config.steps:
            return f"Trained already: {config.steps} steps, {list_steps(checkpoints)[config.steps]}"
        nonfinite.refuse_to_repeat(config, folder, training.step)
        if distributed.rank() == 0:
            note_settings(config, folder, training.step)
        with stop_signals() as stop:
            try:
                url = run_steps(training, samples, probe, folder, stop)
            except NotFiniteError as error:
                raise nonfinite.keep(training, folder, error) from error
    return f"Trained {config.steps} steps: {url}"


@contextlib.contextmanager
def _rank_named() -> Iterator[None]:
    """Say on which of several ranks storage or data failed."""
    try:
        yield
    except (StorageError, DamagedFileError) as error:
        if distributed.world_size() == 1:
            raise
        raise RankError(f"rank {distributed.rank()}: {error}") from error


def open_samples(config: TrainConfig) -> CroppedSamples:
    """The data of the training.

    Raises:
        StorageError, ConfigError, DamagedFileError: It is not there or does not fit.
    """
    index_url = storage.join(data_folder(config), "index.parquet")
    reader = ShardReader(
        index_url,
        images_per_caption=config.images_per_caption,
        cache_folder=config.loader.cache_folder,
        cache_bytes=int(config.loader.cache_gib * (1 << 30)),
        remembered_shards=2 * config.loader.shuffle_shards,  # A window's, and the next one's.
    )
    if len(reader) == 0:
        raise DamagedFileError(f"index {index_url} lists no samples: there is nothing to train on")
    sampler = ShuffleSampler(reader.shard_sizes, config.seed, config.loader.shuffle_shards)
    spec = CropSpec(
        crops=config.crops,
        photometric=config.photometric,
        global_size=config.model.image_size,
        patch_size=config.model.patch_size,
        patch_share=config.objective.masked_patches,
        images_per_caption=config.images_per_caption,
        one_image=images_per_step(config) < config.images_per_caption,
    )
    return CroppedSamples(reader, sampler, spec, config.seed, target_reader(config))


def check_ranks(config: TrainConfig) -> None:
    """See that the batch can be shared out among the ranks and their pieces.

    Raises:
        ConfigError: It cannot.
    """
    pieces = distributed.world_size() * config.accumulation
    if config.captions_per_batch % pieces:
        raise ConfigError(
            f"captions_per_batch is {config.captions_per_batch}: expected a multiple of {pieces}, "
            f"which is {distributed.world_size()} ranks times accumulation {config.accumulation}"
        )


def _check_batch(config: TrainConfig, num_samples: int) -> None:
    """See that no batch has to have a caption twice."""
    if config.captions_per_batch > num_samples:
        raise ConfigError(
            f"captions_per_batch is {config.captions_per_batch}, but {data_folder(config)} holds "
            f"{num_samples} captions: expected at most that many"
        )


def _warn(config: TrainConfig, device: torch.device) -> None:
    """Say which settings do not do what they seem to."""
    if device.type == "cpu" and config.precision == "bf16" and bfloat16_is_slow():
        log.warning(SLOW_BFLOAT16, "precision=fp32")
    if config.objective.kind != "contrastive":
        return
    same_caption = config.objective.positives == "caption"
    if config.crops.num_global * (config.images_per_caption if same_caption else 1) == 1:
        others = "images_per_caption is 1" if same_caption else "objective.positives is image"
        log.warning("No global crop has a positive: crops.num_global is 1, and %s.", others)
    if config.accumulation > 1 and config.objective.contrastive_head.norm == "bn":
        log.warning("Batch norms see a piece at a time; norm=ln gives the whole batch's gradient.")


def rank_device(config: TrainConfig, local_rank: int) -> torch.device:
    """The device of this process.

    Raises:
        NoDeviceError: A CUDA device is asked for, and there is none for this process.
    """
    if config.device == "cpu" or (config.device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise NoDeviceError("device is 'cuda', but this machine has no usable CUDA device")
    num_devices = torch.cuda.device_count()
    if local_rank >= num_devices:
        raise NoDeviceError(
            f"local rank {local_rank} has no GPU of its own, this machine has {num_devices}: "
            f"expected --nproc-per-node={num_devices} or less"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def start_rank(config: TrainConfig) -> torch.device:
    """Join the processes that `torchrun` started, if it did; returns the device of this one.

    Raises:
        ConfigError: There is no device for it, or the environment does not say who the others are.
    """
    device = rank_device(config, int(os.environ.get("LOCAL_RANK", "0")))
    if "WORLD_SIZE" in os.environ:
        try:
            distributed.start(device)
        except ValueError as error:
            raise ConfigError(
                f"WORLD_SIZE is set as for one process of several, but {error}: start them with "
                "torchrun, or unset WORLD_SIZE"
            ) from error
    return device


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer.train",
        description="Train an encoder on the image shards of a run.",
        epilog="Keys:\n" + describe(TrainConfig),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", help="YAML file of the training")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="change single settings"
    )
    parsed = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    speaks = os.environ.get("RANK", "0") == "0"
    try:
        config = load_config(TrainConfig, parsed.config, parsed.overrides)
        line, code = train(config, start_rank(config)), OK
        distributed.stop()
    except (Exception, KeyboardInterrupt) as error:
        ignore_stops()  # Else the launcher's, once another rank has left, would hide this code.
        code, line, any_rank = ending(error)
        speaks = speaks or any_rank
        if isinstance(error, StoppedError):
            distributed.stop()
    finally:
        distributed.abort()  # Unless all have left together: the others may be stuck.
    if speaks:
        print(line, file=sys.stderr if code else sys.stdout)
    return code


def ending(error: BaseException) -> tuple[int, str, bool]:
    """What an error means for the person who started it.

    Returns:
        The exit code, the last line, and whether other ranks than the first say it.

    Raises:
        BaseException: The error itself, where it is nobody's but a programmer's.
    """
    if distributed.is_lost(error):
        error = distributed.lost(error)
    for kind, code, line, any_rank in ENDINGS:
        if isinstance(error, kind):
            return code, line.format(error, rank=distributed.rank()), any_rank
    raise error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
