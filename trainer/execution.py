"""How networks are run on the hardware: rounding and drop path's noise aside the same training.

Several ranks either hold all weights each and average their gradients while the backward pass
goes on (`replicate`, torch's `DistributedDataParallel`), or share them out (`shard`, torch's
`fully_shard`, FSDP2), block by block. Batch norms see all ranks in both, and checkpoints are the
same in both, for any number of ranks.
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
"""What `recompute: elementwise` does not compute again."""


class ExecutionConfig(Config):
    """Trades of speed for memory, and patience; what is learned stays the same, as said above."""

    sharding: Literal["replicate", "shard"] = no_fingerprint("replicate")
    """Over several ranks: `replicate` all weights (DDP), or `shard` weights, gradients, optimiser
    and teacher (FSDP2), for encoders that do not fit."""
    compile: bool = no_fingerprint(False)
    """Compile each block of the encoder, losses and colours; the first steps take minutes longer.
    Drop path draws other noise."""
    recompute: Literal["nothing", "elementwise", "blocks"] = no_fingerprint("nothing")
    """What of the student's blocks is not kept but computed again in the backward pass:
    `elementwise` all but matrix products and attention (saves a third of the memory for little
    time), `blocks` all but a block's input (three quarters for a third more arithmetic)."""
    timeout_s: Annotated[float, Field(ge=3 * distributed.HEARTBEAT_S)] = no_fingerprint(300.0)
    """A rank that does not answer for so many seconds is taken for lost, and the job ends; 30
    minutes until the first step is done, since some ranks compile or fetch data longer. At least
    30: a rank that is busy with a checkpoint gives a sign of life every 10."""


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
    """Move networks to the device, in place, and spread them over the ranks.

    With `bf16` a GPU also multiplies float32 matrices (the losses') by its TF32 units, for all of
    this process: a logit loses as little as by a rounding of its factors to 10 bits.

    Returns:
        What to call in place of the student. Parameters, optimiser and state stay the student's.
    """
    if device.type == "cuda" and precision == "bf16":
        torch.set_float32_matmul_precision("high")
    if config.compile:
        # DDP averages gradients block by block in any case: parts of a block only fuse less.
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
    """Have blocks keep less for the backward pass; before they are compiled or spread."""
    if config.recompute == "nothing":
        return
    options: dict[str, Any] = {"use_reentrant": False}
    if config.recompute == "elementwise":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, KEPT_PRODUCTS)
    for block in blocks:
        block.forward = partial(_checkpointed, block, options)


def _checkpointed(block: nn.Module, options: dict[str, Any], tokens: Tensor) -> Tensor:
    # Compiling starts at the first function that is not torch's own: with a bare `checkpoint` in
    # this one's place, nothing of the block would be compiled.
    result: Tensor = checkpoint(type(block).forward, block, tokens, **options)
    return result


def _shard(network: EncoderNetwork, precision: Precision) -> None:
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
        # Autocast would round a block's weights in any case, but for its norms': gathered in
        # bfloat16 they take half the time. What goes from block to block stays in float32.
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    for block in encoder.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(network, mesh=mesh)
    register_fsdp_forward_method(network, "forward_features")
    if precision == "bf16":  # Without autocast, as in probes, such weights would meet float32.
        in_bfloat16 = torch.autocast(device, torch.bfloat16, cache_enabled=False)
        setattr(network, "forward_features", in_bfloat16(network.forward_features))  # noqa: B010


@contextlib.contextmanager
def gradients_wait(student: nn.Module, *, last: bool) -> Iterator[None]:
    """Average gradients over the ranks only in the backward pass of the last piece.

    Until then each rank has them whole, where weights are shared out, too.
    """
    from torch.distributed.fsdp import FSDPModule

    if isinstance(student, FSDPModule):
        student.set_requires_gradient_sync(last)
    if isinstance(student, DistributedDataParallel) and not last:
        with student.no_sync():
            yield
    else:
        yield


def whole(state: Any, *, to_host: bool = False) -> Any:
    """A state dict, however nested, with every tensor whole; all ranks must call it together.

    Args:
        state: The state dict.
        to_host: Bring tensors that are spread to the host of rank 0 alone, one by one, so that no
            device ever holds two of them; on the other ranks they are None.
    """
    from torch.distributed.tensor import DTensor

    if isinstance(state, dict):
        return {key: whole(value, to_host=to_host) for key, value in state.items()}
    if isinstance(state, list):
        return [whole(value, to_host=to_host) for value in state]
    if not isinstance(state, DTensor):
        return state
    tensor = state.full_tensor()
    if not to_host:
        return tensor
    return tensor.cpu() if distributed.rank() == 0 else None


def load_whole(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Load a whole state dict into a module, spread over the ranks or not."""
    own = module.state_dict()
    spread = {name: _spread(value, own[name]) for name, value in state.items() if name in own}
    module.load_state_dict({**state, **spread})


def load_whole_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load a whole state dict into an optimiser, spread over the ranks or not.

    Moments are spread one by one, before the optimiser would move all of them to the device. None
    is taken over: the state may be a file mapped into memory.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    spread = {
        number: {
            name: _spread(value.to(parameter.device, copy=True), parameter)
            if value.shape == parameter.shape
            else value.clone()
            for name, value in state["state"].get(number, {}).items()
        }
        for number, parameter in zip(numbers, parameters, strict=True)
    }
    held = {number: values for number, values in spread.items() if values}
    optimizer.load_state_dict({**state, "state": held})


def _spread(value: Tensor, template: Tensor) -> Tensor:
    """A whole tensor, spread over the ranks as the template is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(template, DTensor):
        return value
    mesh, placements = template.device_mesh, template.placements
    return distribute_tensor(value.to(template.device), mesh, placements, src_data_rank=None)
