"""Floating-point operations of a training step, counted from the shapes, and what devices can do.

Only matrix products count (two operations per multiply-add), a backward pass as twice its forward
pass; what is computed a second time to save memory does not count. Model FLOP utilisation is this
number over the time of a step and the device's peak. The rest of a step (norms, softmax, crops,
the optimiser) is left out, as is usual, so the utilisation is a lower bound.
"""

from typing import TYPE_CHECKING

from trainer.models.heads import ContrastiveHeadConfig, PrototypeHeadConfig
from trainer.models.vit import EncoderConfig

if TYPE_CHECKING:
    from trainer.config import TrainConfig

FORWARD, BACKWARD = 1, 2

PEAK_TFLOPS = {
    "GB200": 2500.0,
    "B200": 2250.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "A10G": 125.0,
    "RTX 4090": 165.0,
    "RTX 3090": 71.0,
}
"""Dense bfloat16 peak by a part of the device's name, from the makers' data sheets; the first match
counts."""


def peak_flops(device_name: str) -> float | None:
    """What a device can do in a second at most, in bfloat16; None for one we do not know."""
    for part, tflops in PEAK_TFLOPS.items():
        if part in device_name:
            return tflops * 1e12
    return None


def encoder_flops(model: EncoderConfig, size: int) -> float:
    """A forward pass of one image of `size` by `size` pixels."""
    patches = (size // model.patch_size) ** 2
    embedding = 2 * patches * model.width * 3 * model.patch_size**2
    blocks = model.depth * block_flops(patches + 1, model.width, model.mlp_ratio)
    return embedding + blocks


def block_flops(tokens: int, width: int, mlp_ratio: float = 4.0) -> float:
    """A forward pass of one sequence through a transformer block."""
    # Queries, keys, values and the output; the two layers of the MLP; scores and their use.
    return 2 * (tokens * width**2 * (4 + 2 * mlp_ratio) + 2 * tokens**2 * width)


def contrastive_head_flops(width: int, head: ContrastiveHeadConfig, *, predictor: bool) -> float:
    """A forward pass of one image's embedding through projector and predictor."""
    products = width * head.hidden + head.hidden * head.hidden + head.hidden * head.out
    if predictor:
        products += 2 * head.out * head.hidden
    return 2.0 * products


def prototype_head_flops(width: int, head: PrototypeHeadConfig) -> float:
    """A forward pass of one masked token, prototypes included."""
    products = width * head.hidden + head.hidden * head.hidden + head.hidden * head.bottleneck
    return 2.0 * (products + head.bottleneck * head.num_prototypes)


def image_flops(config: "TrainConfig") -> float:
    """A training step's work on one image with all its crops: student, teacher, heads, text."""
    model, objective, crops = config.model, config.objective, config.crops
    learning = FORWARD + BACKWARD
    total = learning * crops.num_global * encoder_flops(model, model.image_size)
    total += learning * crops.num_local * encoder_flops(model, crops.local_size)
    if objective.kind == "contrastive":
        return total + _contrastive_flops(config)
    if objective.kind == "clip":
        text = objective.text
        total += learning * text.depth * block_flops(text.context, text.width)
    return total


def _contrastive_flops(config: "TrainConfig") -> float:
    """Of one image: its embeddings, the teacher, iBOT, and the comparison with the batch."""
    model, objective, crops = config.model, config.objective, config.crops
    head, width, learning = objective.contrastive_head, model.width, FORWARD + BACKWARD
    anchors = crops.num_global + crops.num_local
    embed = contrastive_head_flops(width, head, predictor=objective.teacher)
    total = learning * anchors * embed
    passes = learning
    if objective.teacher:
        teacher = encoder_flops(model, model.image_size)
        teacher += contrastive_head_flops(width, head, predictor=False)
        total += FORWARD * crops.num_global * teacher
        passes += FORWARD
    if objective.ibot_weight:
        masked = objective.masked_images * objective.masked_patches * model.num_patches
        tokens = crops.num_global * masked
        total += passes * tokens * prototype_head_flops(width, objective.prototype_head)
    # Every crop is compared with every global crop of the batch; keys take no gradient.
    batch = config.captions_per_batch * config.images_per_caption * crops.num_global
    return total + (FORWARD + 1) * anchors * 2 * batch * head.out
