"""The encoder: timm's plain Vision Transformer, with a way to hide patches from it.

Source: paper section 4.2 (ViT-B/16 and ViT-L/14, no LayerScale and no SwiGLU). The encoder takes
crops of any size that is a multiple of the patch size. The position embedding is interpolated to
their grid, so the same encoder takes global and local crops.
"""

from functools import partial
from typing import Annotated, Any, Self

import torch
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional

from trainer.models.drop_path import DropPath
from transforms.core.config import Config

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class EncoderConfig(Config):
    """Shape of the encoder and normalisation of its input; the defaults are ViT-B/16."""

    image_size: PositiveInt = 224
    """Side of a global crop and of a test image, in pixels (paper: 224)."""
    patch_size: PositiveInt = 16
    """Side of a patch in pixels (paper: 16 for B, 14 for L)."""
    width: PositiveInt = 768
    """Size of a token (ViT: 768 for B, 1024 for L)."""
    depth: PositiveInt = 12
    """Number of transformer blocks (ViT: 12 for B, 24 for L)."""
    num_heads: PositiveInt = 12
    """Attention heads per block (ViT: 12 for B, 16 for L)."""
    mlp_ratio: PositiveFloat = 4.0
    """Hidden size of a block's MLP over `width` (ViT: 4)."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Stochastic depth rate of the student's last block (paper: 0.1 for B, 0.4 for L)."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Subtracted from each channel of an image in [0, 1] (authors' code: ImageNet's)."""
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = IMAGENET_STD
    """Divides each channel after the mean is subtracted (authors' code: ImageNet's)."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}"
            )
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not a multiple of num_heads {self.num_heads}")
        return self

    @property
    def num_patches(self) -> int:
        """Number of patch tokens of an image of `image_size`."""
        return (self.image_size // self.patch_size) ** 2


def architecture(config: EncoderConfig) -> dict[str, object]:
    """Return the arguments that make timm's `VisionTransformer` this encoder."""
    return {
        "img_size": config.image_size,
        "patch_size": config.patch_size,
        "embed_dim": config.width,
        "depth": config.depth,
        "num_heads": config.num_heads,
        "mlp_ratio": config.mlp_ratio,
        "num_classes": 0,
        "dynamic_img_size": True,
    }


class LayerNorm(nn.LayerNorm):
    """Layer norm in the precision of its input, whatever the precision of its weights."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the normalised tokens [..., D]."""
        weight, bias = self.weight.to(tokens.dtype), self.bias.to(tokens.dtype)
        return functional.layer_norm(tokens, self.normalized_shape, weight, bias, self.eps)


def build_encoder(config: EncoderConfig, seed: int, *, drop_path: float = 0.0) -> nn.Module:
    """Return a new timm `VisionTransformer` on the CPU, in float32 and training mode.

    Its `forward_features` takes images [N, 3, H, W], with H and W multiples of the patch size, and
    returns the normalised tokens of the last block [N, 1 + P, D]: cls token, then P patch tokens.
    It never leaves a branch out; `encode` does in training mode.

    Args:
        config: Shape of the encoder.
        seed: Same seed, same weights; the global random state does not change.
        drop_path: Stochastic depth rate; 0 for all but a student in training.
    """
    from timm.models.vision_transformer import VisionTransformer

    from trainer.models.block import Block

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder: nn.Module = VisionTransformer(
            **architecture(config), norm_layer=partial(LayerNorm, eps=1e-6), block_fn=Block
        )
    if drop_path:
        encoder.drop_path = DropPath(config.depth, drop_path)
    return encoder


class EncoderNetwork(nn.Module):
    """A network with an encoder; the encoder is the result of the training."""

    encoder: nn.Module

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the encoder's tokens (see `build_encoder`), also if it is spread over ranks."""
        encoder: Any = self.encoder
        tokens: Tensor = encoder.forward_features(images)
        return tokens

    def keep_within_bounds(self) -> None:
        """Clamp parameters that have bounds, in place; called after each update."""


def use_plain_attention(module: nn.Module) -> None:
    """Make attention use matrix products and a softmax instead of torch's fused kernel.

    On a CPU, with short bfloat16 sequences, the fused kernel doubles the time of a training step.
    """
    for part in module.modules():
        if hasattr(part, "fused_attn"):
            setattr(part, "fused_attn", False)  # noqa: B010


def encode(
    encoder: Any,
    images: Tensor,
    mask: Tensor | None = None,
    mask_token: Tensor | None = None,
    *,
    seeds: Tensor | None = None,
) -> Tensor:
    """Return the tokens of `forward_features`, with drop path and some patches hidden.

    Args:
        encoder: Encoder from `build_encoder`.
        images: [N, 3, H, W], normalised.
        mask: bool [N, P], True for patches that are replaced by `mask_token` before the position
            embedding is added; None hides nothing.
        mask_token: [D], needed with a mask.
        seeds: int64 [N], seed of each image's drop path; needed by an encoder in training mode that
            has a drop path, without effect on others.

    Returns:
        [N, 1 + P, D].
    """
    patches = encoder.patch_embed(images)  # [N, H / patch, W / patch, D]
    if mask is not None and mask_token is not None:
        hidden = mask.view(*patches.shape[:3], 1)
        patches = torch.where(hidden, mask_token.to(patches.dtype), patches)
    tokens: Tensor = encoder.norm_pre(encoder._pos_embed(patches))
    if encoder.training and hasattr(encoder, "drop_path"):
        assert seeds is not None, "drop path needs the seeds of the images"
        for block, factors in zip(encoder.blocks, encoder.drop_path(seeds), strict=True):
            tokens = block(tokens, factors)
    else:
        for block in encoder.blocks:
            tokens = block(tokens)
    tokens = encoder.norm(tokens)
    return tokens
