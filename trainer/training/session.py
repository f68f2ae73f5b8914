"""One process of a training or a replay: the other ranks, its device and the data it reads."""

import contextlib
import json
import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from trainer import distributed
from trainer.config import TrainConfig, data_folder
from trainer.data.batch import Batch, CroppedSamples, CropSpec
from trainer.data.host_memory import ADVICE, is_memory_error
from trainer.data.loader import batches
from trainer.data.sampler import ShuffleSampler, first_captions
from trainer.data.shard_reader import ShardReader
from trainer.distributed import LostRankError
from trainer.execution import device_type
from trainer.objectives.registry import objective_of
from trainer.signals import ignore_stops, interruptible
from trainer.training.errors import RankConfigError, RankError, StoppedError
from transforms.core import storage
from transforms.core.config_keys import flatten
from transforms.core.errors import ConfigError, DamagedFileError, StorageError
from transforms.core.fingerprint import Fingerprint
from transforms.core.references import field_hash, redacted

if TYPE_CHECKING:
    from trainer.evaluate.config import EvaluateConfig


@contextlib.contextmanager
def rank_session() -> Iterator[None]:
    """Leave the process group at the end of the body.

    After success or a stop signal all ranks leave together. After any other error this rank leaves
    alone, because the others may be stuck. From an error on the process ignores stop signals: the
    launcher ends all ranks once one has failed, which would hide the exit code of this one.

    Raises:
        LostRankError: Another rank is gone or does not answer.
        RankConfigError: The device is out of memory.
        RankError: The machine is out of memory.
    """
    try:
        yield
        distributed.stop()
    except BaseException as error:
        ignore_stops()
        if isinstance(error, StoppedError):
            distributed.stop()
        if distributed.is_lost_rank(error):
            raise distributed.lost_rank_error(error) from error
        if isinstance(error, torch.OutOfMemoryError):
            raise RankConfigError(
                f"rank {distributed.rank()}: the device is out of memory: expected a smaller "
                "captions_per_batch, a larger accumulation, execution.recompute=elementwise or "
                "=blocks, or execution.sharding=shard"
            ) from error
        if is_memory_error(error) and not isinstance(error, StorageError):
            raise RankError(f"rank {distributed.rank()}: {ADVICE}") from error
        raise
    finally:
        distributed.abort()


def start_rank(config: "TrainConfig | EvaluateConfig") -> torch.device:
    """Join the other ranks, if `torchrun` started this process; return the device of this rank.

    Raises:
        ConfigError: There is no such device, the environment does not name the other ranks, or
            these have other settings.
    """
    device = rank_device(config, int(os.environ.get("LOCAL_RANK", "0")))
    if "WORLD_SIZE" in os.environ:
        try:
            with interruptible():
                distributed.start(device)
        except ValueError as error:
            raise ConfigError(
                f"WORLD_SIZE is set as for one process of several, but {error}: start them with "
                "torchrun, or unset WORLD_SIZE"
            ) from error
    with interruptible():
        check_same_settings(config)
    return device


def check_same_settings(config: "TrainConfig | EvaluateConfig") -> None:
    """Check that all ranks have the same config; all ranks must call this together.

    Also settings that change nothing that is learned must be the same: ranks that disagree about
    when to write a line of metrics wait for each other in different places.

    Raises:
        ConfigError: The config of another rank differs; all ranks raise the same sentence.
    """
    settings = dict(flatten(config.model_dump(mode="json")))
    digests = distributed.gather_objects(Fingerprint(settings).digest)
    if len(set(digests)) == 1:
        return
    mine = {key: (field_hash(key, value), _text(value)) for key, value in settings.items()}
    sentence = _differences(distributed.gather_objects(mine))
    with contextlib.suppress(LostRankError):
        distributed.gather_objects(None)  # No rank leaves before all have the sentence.
    # One rank of each machine prints it.
    error = RankConfigError if distributed.first_rank_here() == distributed.rank() else ConfigError
    raise error(f"{sentence}: expected the same command on every machine")


def _text(value: Any) -> str:
    """Return a value of a config for people; those from the environment only this rank can hide."""
    return redacted(json.dumps(value, ensure_ascii=False))


def _differences(settings: Sequence[Mapping[str, tuple[str, str]]]) -> str:
    """Return which settings differ, as text.

    Args:
        settings: For each rank: dotted key -> (hash of the value, text of the value).
    """
    parts = []
    for key in sorted(set().union(*settings)):
        values = [of_rank.get(key, ("", "nothing")) for of_rank in settings]
        other = next((rank for rank, value in enumerate(values) if value[0] != values[0][0]), None)
        if other is not None:
            texts = f"{values[0][1]} on rank 0 and {values[other][1]} on rank {other}"
            parts.append(f"key {key!r} is {texts}")
    return "; ".join(parts)


def rank_device(config: "TrainConfig | EvaluateConfig", local_rank: int) -> torch.device:
    """Return the device of this rank: the CPU, or the GPU with the number of the rank.

    Args:
        config: The training or evaluation.
        local_rank: Number of this rank among those of its machine.

    Raises:
        RankConfigError: The config wants a GPU, and there is none for this rank.
    """
    try:
        kind = device_type(config.device)
    except ConfigError as error:  # Machines may differ, so each rank has to say so.
        raise RankConfigError(str(error)) from error
    if kind == "cpu":
        return torch.device("cpu")
    num_devices = torch.cuda.device_count()
    if local_rank >= num_devices:
        raise RankConfigError(
            f"local rank {local_rank} has no GPU of its own, this machine has {num_devices}: "
            f"expected --nproc-per-node={num_devices} or less"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def check_ranks(config: TrainConfig) -> None:
    """Check that the batch divides evenly among the ranks and their micro-batches.

    Raises:
        ConfigError: It does not.
    """
    together = objective_of(config).captions_together(config)
    parts = distributed.world_size() * config.accumulation * together
    if config.captions_per_batch % parts:
        pairs = f" times {together} captions that are taken together" if together > 1 else ""
        raise ConfigError(
            f"captions_per_batch is {config.captions_per_batch}: expected a multiple of {parts}, "
            f"which is {distributed.world_size()} ranks times accumulation {config.accumulation}"
            f"{pairs}"
        )


def open_samples(config: TrainConfig) -> CroppedSamples:
    """Open the data of a training.

    Raises:
        StorageError, ConfigError, DamagedFileError: The data are missing, or do not fit the config.
    """
    index_url = storage.join(data_folder(config), "index.parquet")
    reader = ShardReader(
        index_url,
        images_per_caption=config.images_per_caption,
        cache_folder=config.loader.cache_folder,
        cache_bytes=int(config.loader.cache_gib * (1 << 30)),
        remembered_shards=2 * config.loader.shuffle_shards,  # Of this window and the next.
    )
    if len(reader) == 0:
        raise DamagedFileError(f"index {index_url} lists no samples: there is nothing to train on")
    sampler = ShuffleSampler(
        _sizes_taken(config, reader), config.seed, config.loader.shuffle_shards
    )
    objective = objective_of(config)
    spec = CropSpec(
        crops=config.crops,
        photometric=objective.photometric(config),
        global_size=config.model.image_size,
        patch_size=config.model.patch_size,
        patch_share=objective.patch_share(config),
        images_per_caption=config.images_per_caption,
        one_image=objective.one_image_per_caption,
        distortion=objective.distortion(config),
    )
    return CroppedSamples(reader, sampler, spec, config.seed, objective.target_reader(config))


def _sizes_taken(config: TrainConfig, reader: ShardReader) -> NDArray[np.int64]:
    """Return the number of captions that are taken of each shard, from the first shard on.

    Raises:
        ConfigError: More captions are asked for than there are.
    """
    number = config.data.num_captions
    if number is None:
        return reader.shard_sizes
    if number > len(reader):
        raise ConfigError(
            f"key 'data.num_captions' has value {number}, but {data_folder(config)} holds "
            f"{len(reader)} captions: expected at most that many"
        )
    return first_captions(reader.shard_sizes, number)


def rank_batches(
    config: TrainConfig, samples: CroppedSamples, steps: range
) -> Generator[Batch, None, None]:
    """Yield this rank's batches of consecutive steps.

    Close the generator at the end: otherwise its loader processes survive an error.
    """
    return batches(
        samples,
        config.loader,
        first_step=steps.start,
        last_step=steps.stop,
        captions_per_batch=config.captions_per_batch,
        rank=distributed.rank(),
        ranks=distributed.world_size(),
        ranks_here=distributed.ranks_on_machine(),
    )
