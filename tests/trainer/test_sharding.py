"""Sharded weights: in which precision they are gathered, and when gradients are averaged."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
import torch.distributed.fsdp as fsdp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tests.support.gradients import tiny_config
from tests.support.image_shards import write_images
from trainer import distributed
from trainer.execution import gradients_wait, unsharded
from trainer.training.session import open_samples, rank_batches
from trainer.training.step import Training

CPU = torch.device("cpu")


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Path]:
    """Yield a run, in a process group of one process."""
    write_images(tmp_path / "images")
    rendezvous = f"file://{tmp_path}/rendezvous"
    torch.distributed.init_process_group("gloo", init_method=rendezvous, rank=0, world_size=1)
    yield tmp_path
    distributed.stop()


def training_of(run: Path, sharding: str, **changes: Any) -> Training:
    return Training(tiny_config(run, execution={"sharding": sharding}, **changes), CPU)


def gradients(training: Training) -> dict[str, Tensor]:
    config = training.config
    batch = next(rank_batches(config, open_samples(config), range(1)))
    training.objective.backward(batch, 0)
    named = training.student.named_parameters()
    return unsharded(
        {name: parameter.grad for name, parameter in named if parameter.grad is not None}
    )


def test_blocks_travel_in_bfloat16_and_talk_in_float32(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sums: set[torch.dtype | None] = set()
    fully_shard = fsdp.fully_shard

    def record(module: nn.Module, **settings: Any) -> Any:
        sums.add(settings["mp_policy"].reduce_dtype if "mp_policy" in settings else torch.float32)
        return fully_shard(module, **settings)

    monkeypatch.setattr(fsdp, "fully_shard", record)
    training = training_of(run, "shard", precision="bf16")
    assert sums == {torch.float32}, "gradients are summed over the ranks in float32"
    seen: set[tuple[torch.dtype, torch.dtype]] = set()

    def look(block: Any, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        seen.add((block.attn.qkv.weight.dtype, inputs[0].dtype))

    encoder: Any = training.student.encoder
    for block in encoder.blocks:
        block.register_forward_hook(look, prepend=True)
    sharded = gradients(training)
    assert seen == {(torch.bfloat16, torch.float32)}
    assert {gradient.dtype for gradient in sharded.values()} == {torch.float32}
    training = training_of(run, "replicate", precision="bf16")
    assert isinstance(training.objective.student, DistributedDataParallel)
    replicated = gradients(training)
    assert sharded.keys() == replicated.keys()
    for name, gradient in replicated.items():
        assert (sharded[name] - gradient).norm() < 0.03 * gradient.norm() + 1e-6, name


def test_features_of_bfloat16_weights_need_no_autocast(run: Path) -> None:
    images = torch.randn(2, 3, 16, 16)
    network = training_of(run, "shard", precision="bf16").network
    exact = training_of(run, "replicate", precision="fp32").network
    with torch.no_grad():
        features, expected = network.forward_features(images), exact.forward_features(images)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, expected, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_gradients_are_averaged_with_the_last_piece(run: Path, precision: str) -> None:
    training = training_of(run, "shard", precision=precision, model={"drop_path": 0.0})
    student: nn.Module = training.student
    images = [torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(i)) for i in (0, 1)]

    def backward(piece: int, *, last: bool) -> None:
        with gradients_wait(student, last=last), torch.autocast("cpu", enabled=precision == "bf16"):
            student(images[piece]).embeddings.square().sum().backward()

    def weight() -> Tensor:
        gradient = training.student.encoder.get_parameter("blocks.0.mlp.fc1.weight").grad
        assert gradient is not None
        return unsharded(gradient.clone())

    totals = []
    for piece in (0, 1):
        backward(piece, last=True)
        totals.append(weight())
        student.zero_grad()
    backward(0, last=False)
    assert all(parameter.grad is None for parameter in student.parameters())
    backward(1, last=True)
    torch.testing.assert_close(weight(), totals[0] + totals[1])
