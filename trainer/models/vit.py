"""The encoder: a plain Vision Transformer out of timm, with a way to hide patches from it.

Source: paper appendix (ViT-B/16 and ViT-L/14). No LayerScale and no SwiGLU.
Crops of any size that the patch size divides are taken; the position embedding is interpolated to
their grid, which is how one encoder sees both global and local crops.
"""

from functools import partial
from typing import Annotated, Any, Self

import torch
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional

from trainer.models.drop_path import use_drop_path
from transforms.core.config import Config

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class EncoderConfig(Config):
    """Shape of the encoder and what its input looks like; the defaults are ViT-B/16."""

    image_size: PositiveInt = 224
    """Side of a global crop and of a test image, in pixels (paper: 224)."""
    patch_size: PositiveInt = 16
    """Side of a patch in pixels (paper: 16 for B, 14 for L)."""
    width: PositiveInt = 768
    """Size of a token (paper: 768 for B, 1024 for L)."""
    depth: PositiveInt = 12
    """Number of transformer blocks (paper: 12 for B, 24 for L)."""
    num_heads: PositiveInt = 12
    """Attention heads per block (paper: 12 for B, 16 for L)."""
    mlp_ratio: PositiveFloat = 4.0
    """Hidden size of a block's MLP over `width` (paper: 4)."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Stochastic depth rate of the student's last block (paper: 0.1 for B, 0.4 for L)."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Subtracted from each channel of an image in [0, 1] (paper: ImageNet's)."""
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = IMAGENET_STD
    """Divides each channel after the mean is subtracted (paper: ImageNet's)."""

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
        """Patch tokens of an image of `image_size`."""
        return (self.image_size // self.patch_size) ** 2


def architecture(config: EncoderConfig) -> dict[str, object]:
    """The arguments with which timm's `VisionTransformer` becomes this encoder."""
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
    """Layer norm in the precision of its input, whatever that of its weights."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Normalise; tokens: [..., D]."""
        weight, bias = self.weight.to(tokens.dtype), self.bias.to(tokens.dtype)
        return functional.layer_norm(tokens, self.normalized_shape, weight, bias, self.eps)


def build_encoder(config: EncoderConfig, seed: int, *, drop_path: float = 0.0) -> nn.Module:
    """A freshly initialised timm `VisionTransformer` on the CPU, in float32 and training mode.

    Its `forward_features` takes images [N, 3, H, W], H and W multiples of the patch size, and gives
    the normalised tokens of the last block [N, 1 + P, D]: the cls token, then the P patch tokens.

    Args:
        config: Its shape.
        seed: Same seed, same weights; the global random state is left alone.
        drop_path: Stochastic depth rate; only a student in training wants one.
    """
    from timm.models.vision_transformer import VisionTransformer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder: nn.Module = VisionTransformer(
            **architecture(config), norm_layer=partial(LayerNorm, eps=1e-6)
        )
    if drop_path:
        use_drop_path(encoder, drop_path)
    return encoder


class EncoderNetwork(nn.Module):
    """A network that is trained for the sake of the encoder in it."""

    encoder: nn.Module

    def forward_features(self, images: Tensor) -> Tensor:
        """Tokens of the encoder, see `build_encoder`; also where it is spread over the ranks."""
        encoder: Any = self.encoder
        tokens: Tensor = encoder.forward_features(images)
        return tokens

    def keep_within_bounds(self) -> None:
        """After an update: put parameters that have bounds back within them, in place."""


def use_plain_attention(module: nn.Module) -> None:
    """Compute attention as matrix products and a softmax, not by torch's fused kernel.

    On a CPU the fused kernel makes a training step on short bfloat16 sequences about twice as long.
    """
    for part in module.modules():
        if hasattr(part, "fused_attn"):
            setattr(part, "fused_attn", False)  # noqa: B010


def encode(
    encoder: Any, images: Tensor, mask: Tensor | None = None, mask_token: Tensor | None = None
) -> Tensor:
    """As `forward_features`, perhaps with patches hidden from the encoder.

    Args:
        encoder: One made by `build_encoder`.
        images: [N, 3, H, W], normalised.
        mask: bool [N, P], True for the patches that `mask_token` stands in for, before the
            position embedding is added; None hides nothing.
        mask_token: [D], with a mask.

    Returns:
        [N, 1 + P, D].
    """
    patches = encoder.patch_embed(images)  # [N, H / patch, W / patch, D]
    if mask is not None and mask_token is not None:
        hidden = mask.view(*patches.shape[:3], 1)
        patches = torch.where(hidden, mask_token.to(patches.dtype), patches)
    tokens: Tensor = encoder.norm_pre(encoder._pos_embed(patches))
    for block in encoder.blocks:
        tokens = block(tokens)
    tokens = encoder.norm(tokens)
    return tokens
