"""Peak memory of one rank's whole step at full size, counted without a GPU.

    python -m benchmarks.step_memory [trainer/configs/synclr_vitb16.yaml --ranks 128 key=value ...]

Without a config, the script compares our step with the straightforward one of `trainer_step`, for
ViT-B/16 with 64 captions. Networks, losses, optimiser and step are the real ones, on torch's fake
tensors, which have a shape but no content. Each storage counts from its allocation to its release.
Fake tensors raise an error when a value is read back from the device, so a step that can be counted
never waits for the device.

Not counted: colour augmentation (before the activations exist), compilation, fragmentation of the
allocator, and the memory of libraries (a CUDA context and NCCL take some 2 GiB).
"""

import argparse
import contextlib
import dataclasses
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import torch
import torch.distributed
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from benchmarks import trainer_step
from trainer import execution
from trainer.config import TrainConfig
from trainer.data.batch import Batch
from trainer.execution import ExecutionConfig
from trainer.objectives import registry
from trainer.objectives.micro_batch import MicroBatch, image_ids, split_batch, step_masks
from trainer.objectives.synclr import SynCLR
from trainer.training import step as step_module
from trainer.training.step import Training
from transforms.core.config import load_config

CPU = torch.device("cpu")


class StorageCount(TorchDispatchMode):
    """Counts the bytes of all storages that operations allocate: current and peak."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        self.peak = max(self.peak, self.now)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self.alive:
            self.alive[key] = storage.nbytes()
            self.now += self.alive[key]
            weakref.finalize(storage, self._end, key)

    def _end(self, key: int) -> None:
        self.now -= self.alive.pop(key)


class Unwrapped:
    """Replaces DDP and allocates what it would: buckets for all gradients."""

    def __new__(cls, network: nn.Module, **_: Any) -> nn.Module:  # type: ignore[misc]  # noqa: D102
        for parameter in network.parameters():
            bucket = torch.empty_like(parameter)
            parameter.register_hook(bucket.copy_)
        return network


@contextlib.contextmanager
def counted_step() -> Iterator[StorageCount]:
    """Make all tensors fake, and networks as on a GPU; count their storages."""

    def faked(config: TrainConfig) -> tuple[nn.Module | None, ...]:
        with _disable_current_modes():
            networks = registry.build_networks(config)
        for network in filter(None, networks):
            _fake_parameters(network)
        return networks

    count = StorageCount()
    with (
        mock.patch.object(step_module, "build_networks", faked),
        mock.patch.object(trainer_step, "build_networks", faked),
        mock.patch.object(execution, "use_plain_attention"),
        mock.patch.object(trainer_step, "use_plain_attention"),
        mock.patch.object(execution, "DistributedDataParallel", Unwrapped),
        mock.patch.object(nn.Module, "to", lambda module, *_: module),
        FakeTensorMode(allow_non_fake_inputs=True),
        count,
    ):
        yield count


def _fake_parameters(network: nn.Module) -> None:
    for module in network.modules():
        for name, value in module._parameters.items():
            if value is not None:
                fake = torch.empty_like(value)
                module._parameters[name] = nn.Parameter(fake, requires_grad=value.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty_like(buffer)


def fake_micro_batches(
    config: TrainConfig, ranks: int
) -> tuple[Batch, Callable[[], list[MicroBatch]]]:
    """Return a rank's batch, and a function that makes its micro-batches in `counted_step`."""
    of_rank = config.model_copy(update={"captions_per_batch": config.captions_per_batch // ranks})
    batch = trainer_step.random_batch(of_rank)
    settings = SynCLR.settings_of(config)
    masks = None
    if settings.ibot_weight:
        masks = step_masks(
            batch,
            first_position=0,
            captions_per_batch=config.captions_per_batch,
            share=settings.masked_images,
            seed=0,
        )
    ids = image_ids(batch, settings.positives, config.images_per_caption)
    micro_batches = split_batch(
        batch,
        ids,
        masks,
        config.accumulation,
        lambda pixels, _: torch.empty(pixels.shape),
        CPU,
        seed=0 if config.model.drop_path else None,
    )
    return batch, lambda: [_fake(part) for part in micro_batches]


def _fake(value: Any) -> Any:
    if isinstance(value, Tensor):
        return torch.empty(value.shape, dtype=value.dtype)
    if isinstance(value, list | tuple):
        return [_fake(part) for part in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **{name: _fake(of) for name, of in fields.items()})
    return value


def peak_gib(config: TrainConfig, ranks: int = 1) -> float:
    """Return the peak of the second step, when the optimiser's moments exist."""
    if ranks > 1:
        from torch.testing._internal.distributed.fake_pg import FakeStore

        torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    try:
        batch, micro_batches = fake_micro_batches(config, ranks)
        with counted_step() as count:
            training = Training(config, CPU)
            with (
                mock.patch.object(training.objective, "micro_batches", lambda *_: micro_batches()),
                mock.patch.object(training.objective, "_masks", lambda *_: None),
            ):
                training.update(batch)
                count.peak = 0
                training.update(batch)
        return count.peak / 2**30
    finally:
        if ranks > 1:
            torch.distributed.destroy_process_group()


def straightforward_peak_gib(config: TrainConfig) -> float:
    """Return the peak of the second step of `trainer_step`'s straightforward implementation."""
    batch = trainer_step.random_batch(config)
    prepared = trainer_step.Straightforward(config, CPU).prepare(batch)
    with counted_step() as count:
        step = trainer_step.Straightforward(config, CPU)
        on_device = _fake(prepared)
        for _ in range(2):
            count.peak = 0
            step.update(on_device)
    return count.peak / 2**30


def compare(captions: int = 64) -> None:
    """Print the peaks of our step and of the straightforward one, on one GPU."""

    def config(**execution: Any) -> TrainConfig:
        return trainer_step.config_of("vitb16", captions, "cpu", ExecutionConfig(**execution))

    base = straightforward_peak_gib(config())
    print(f"{'straightforward':30s} {base:6.1f} GiB")
    for recompute in ("nothing", "elementwise", "blocks"):
        peak = peak_gib(config(recompute=recompute))
        print(f"{'ours, recompute=' + recompute:30s} {peak:6.1f} GiB  {peak / base:5.2f}x")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("config", nargs="?")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parsed = parser.parse_intermixed_args(arguments)
    if parsed.config is None:
        compare()
        return
    as_counted = ["device=cpu", "execution.compile=false"]
    config = load_config(TrainConfig, parsed.config, [*parsed.overrides, *as_counted])
    if config.execution.sharding == "shard":
        parser.error("execution.sharding is 'shard', which is not counted: expected 'replicate'")
    print(f"{peak_gib(config, parsed.ranks):.1f} GiB at one of {parsed.ranks} ranks")


if __name__ == "__main__":
    main()
