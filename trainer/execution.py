"""Execution of networks on the hardware: devices, sharding, compilation, recomputation.

Nothing here changes the training, except for rounding. Over several ranks, each rank either holds
all weights and gradients are averaged during the backward pass (`replicate`, torch's
`DistributedDataParallel`), or weights are sharded block by block (`shard`, torch's `fully_shard`,
FSDP2). Either way batch norms see all ranks, and checkpoints are the same for any number of ranks.
"""

import contextlib
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from trainer import distributed
from trainer.models.vit import EncoderNetwork, use_plain_attention
from transforms.core.config import Config, no_fingerprint
from transforms.core.errors import ConfigError

Precision = Literal["fp32", "bf16"]
DeviceSetting = Literal["auto", "cpu", "cuda"]

aten = torch.ops.aten
KEPT_PRODUCTS = [
    aten.mm.default,
    aten.addmm.default,
    aten.bmm.default,
    aten._scaled_dot_product_cudnn_attention.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
]
"""Operations that `recompute: elementwise` does not compute again."""


class ExecutionConfig(Config):
    """Sharding, compilation, recomputation and the timeout; none of them changes the training."""

    sharding: Literal["replicate", "shard"] = no_fingerprint("replicate")
    """Over several ranks: `replicate` all weights (DDP), or `shard` weights, gradients, optimiser
    and teacher (FSDP2), for encoders that do not fit on one device."""
    compile: bool = no_fingerprint(False)
    """Compile each block of the encoder, the losses and the colour augmentation. The first steps
    take minutes longer."""
    recompute: Literal["nothing", "elementwise", "blocks"] = no_fingerprint("nothing")
    """Results of the student's blocks that are not kept but computed again in the backward pass:
    `elementwise` all except matrix products and attention (saves a third of the memory for little
    time), `blocks` all except the input of each block (saves three quarters for a third more
    arithmetic)."""
    timeout_s: Annotated[float, Field(ge=3 * distributed.HEARTBEAT_S)] = no_fingerprint(300.0)
    """Seconds after which a rank that does not answer is considered lost and the job ends. Until
    the first step is done it is 30 minutes, because some ranks compile or download longer. At least
    30: a rank that is busy with a checkpoint answers every 10."""


def device_type(setting: DeviceSetting) -> Literal["cpu", "cuda"]:
    """Return the kind of device that a config's `device` means on this machine.

    Args:
        setting: `auto` is CUDA if the machine has a usable CUDA device and the CPU otherwise.

    Raises:
        ConfigError: `cuda` is asked for, but there is no usable CUDA device.
    """
    if setting == "cpu" or (setting == "auto" and not torch.cuda.is_available()):
        return "cpu"
    if not torch.cuda.is_available():
        raise ConfigError("device is 'cuda', but this machine has no usable CUDA device")
    return "cuda"


def prepare(
    student: EncoderNetwork,
    teacher: EncoderNetwork | None,
    config: ExecutionConfig,
    device: torch.device,
    precision: Precision,
) -> nn.Module:
    """Move networks to the device, in place, and distribute them over the ranks.

    With `bf16` a GPU also multiplies float32 matrices (those of the losses) with its TF32 units, in
    all of this process. The error of a logit is that of rounding its factors to 10 bits.

    Args:
        student: The trained network, on the CPU.
        teacher: The teacher, on the CPU; None without one.
        config: Sharding, compilation and recomputation.
        device: Device of this rank.
        precision: Precision of the networks' arithmetic.

    Returns:
        The module to call instead of the student. Parameters, optimiser and state remain those of
        the student.
    """
    if device.type == "cuda" and precision == "bf16":
        torch.set_float32_matmul_precision("high")
    if config.compile:
        # DDP averages gradients block by block anyway; compiling parts of a block fuses less.
        torch._dynamo.config.optimize_ddp = False
    for network in filter(None, (student, teacher)):
        network.to(device)
        encoder: Any = network.encoder
        if device.type == "cpu":
            use_plain_attention(encoder)
        if network is student:
            _recompute(encoder.blocks, config)
        if config.compile:
            for block in encoder.blocks:
                block.compile()
        if config.sharding == "shard" and distributed.is_on():
            _shard(network, precision)
    if config.sharding == "shard" or not distributed.is_on():
        return student
    return DistributedDataParallel(
        student,
        device_ids=[device] if device.type == "cuda" else None,
        forward_sync_buffers=False,
        gradient_as_bucket_view=True,
    )


def _recompute(blocks: Iterable[nn.Module], config: ExecutionConfig) -> None:
    """Let blocks keep less for the backward pass; call it before they are compiled or sharded."""
    if config.recompute == "nothing":
        return
    options: dict[str, Any] = {"use_reentrant": False}
    if config.recompute == "elementwise":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, KEPT_PRODUCTS)
    for block in blocks:
        block.forward = partial(_checkpointed, block, options)


def _checkpointed(block: nn.Module, options: dict[str, Any], *inputs: Tensor) -> Tensor:
    # Compilation starts at the first function that is not torch's own. If `block.forward` were
    # `checkpoint` itself, nothing of the block would be compiled.
    result: Tensor = checkpoint(type(block).forward, block, *inputs, **options)
    return result


def _shard(network: EncoderNetwork, precision: Precision) -> None:
    """Shard a network over all ranks, block by block."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import (
        MixedPrecisionPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )

    device = next(network.parameters()).device.type
    mesh = init_device_mesh(device, (distributed.world_size(),))
    encoder: Any = network.encoder
    policy = MixedPrecisionPolicy()
    if precision == "bf16":
        # Autocast rounds a block's weights anyway, except those of its norms; gathering them in
        # bfloat16 takes half the time. Activations between blocks stay in float32.
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    for block in encoder.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(network, mesh=mesh)
    register_fsdp_forward_method(network, "forward_features")
    if precision == "bf16":  # Online kNN calls it without autocast, on float32 pixels.
        in_bfloat16 = torch.autocast(device, torch.bfloat16, cache_enabled=False)
        setattr(network, "forward_features", in_bfloat16(network.forward_features))  # noqa: B010


@contextlib.contextmanager
def gradients_wait(student: nn.Module, *, last: bool) -> Iterator[None]:
    """Average gradients over the ranks only in the backward pass of the last micro-batch.

    Before it each rank holds whole gradients, even where weights are sharded.

    Args:
        student: The module from `prepare`.
        last: Whether the backward pass in the body is that of the last micro-batch.
    """
    from torch.distributed.fsdp import FSDPModule

    if isinstance(student, FSDPModule):
        student.set_requires_gradient_sync(last)
    if isinstance(student, DistributedDataParallel) and not last:
        with student.no_sync():
            yield
    else:
        yield


def unsharded(state: Any, *, to_host: bool = False) -> Any:
    """Return a nested state dict with all tensors unsharded; all ranks must call this together.

    Args:
        state: The state dict.
        to_host: Gather sharded tensors on the host of rank 0 only, one at a time, so that a device
            never holds two of them; on the other ranks they are None.
    """
    from torch.distributed.tensor import DTensor

    if isinstance(state, dict):
        return {key: unsharded(value, to_host=to_host) for key, value in state.items()}
    if isinstance(state, list):
        return [unsharded(value, to_host=to_host) for value in state]
    if not isinstance(state, DTensor):
        return state
    tensor = state.full_tensor()
    if not to_host:
        return tensor
    return tensor.cpu() if distributed.rank() == 0 else None


def load_state(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Load an unsharded state dict into a module, which may be sharded."""
    own = module.state_dict()
    sharded = {name: _shard_like(value, own[name]) for name, value in state.items() if name in own}
    module.load_state_dict({**state, **sharded})


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load an unsharded state dict into an optimiser, whose parameters may be sharded.

    Moments are sharded one at a time, so that the device never holds all of them whole. They are
    copied, because the state may be a file mapped into memory.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    sharded = {
        number: {
            name: _shard_like(value.to(parameter.device, copy=True), parameter)
            if value.shape == parameter.shape
            else value.clone()
            for name, value in state["state"].get(number, {}).items()
        }
        for number, parameter in zip(numbers, parameters, strict=True)
    }
    held = {number: values for number, values in sharded.items() if values}
    optimizer.load_state_dict({**state, "state": held})


def _shard_like(value: Tensor, template: Tensor) -> Tensor:
    """Return a whole tensor sharded like the template."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(template, DTensor):
        return value
    mesh, placements = template.device_mesh, template.placements
    return distribute_tensor(value.to(template.device), mesh, placements, src_data_rank=None)
