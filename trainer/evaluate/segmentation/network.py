"""An encoder with a head that predicts the class of each pixel: UperNet, or a linear layer.

UperNet and its auxiliary head are those of transformers (the code of mmsegmentation). They read
four blocks of the encoder through BEiT's pyramid for plain vision transformers: the patches scaled
by 4, 2, 1 and 0.5. mmsegmentation also drops 10 % of the channels before the classifier;
transformers does not. The linear head is DINOv2's.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer import distributed
from trainer.evaluate.segmentation.recipe import Recipe

POOL_SCALES = (1, 2, 3, 6)
"""Sides of the grids that UperNet pools the last block to."""
AUXILIARY_CHANNELS, AUXILIARY_LEVEL = 256, 2
"""Channels of the auxiliary head, and the level of the pyramid that it reads (mmsegmentation)."""


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation over the pictures of all ranks; torch's own for a single rank.

    All ranks have equally many pictures. Torch's `SyncBatchNorm` does not run on a CPU.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """Return the normalised maps [N, C, H, W]."""
        if not (self.training and distributed.is_on()):
            return super().forward(maps)
        ranks, axes = distributed.world_size(), (0, 2, 3)
        values = maps.to(torch.promote_types(maps.dtype, torch.float32))
        mean = distributed.sum_over_ranks(values.mean(axes)) / ranks
        centred = values - mean[:, None, None]
        variance = distributed.sum_over_ranks(centred.square().mean(axes)) / ranks
        count = ranks * values.numel() / values.shape[1]
        with torch.no_grad():
            estimates = (self.running_mean, self.running_var)
            for kept, new in zip(estimates, (mean, variance * count / (count - 1)), strict=True):
                assert kept is not None and self.momentum is not None, "estimates are kept"
                kept.lerp_(new.to(kept.dtype), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(maps.dtype)


class Pyramid(nn.Module):
    """BEiT's pyramid: four maps of one size, scaled by 4, 2, 1 and 0.5."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.times_4 = nn.Sequential(
            nn.ConvTranspose2d(width, width, 2, 2),
            nn.BatchNorm2d(width),
            nn.GELU(),
            nn.ConvTranspose2d(width, width, 2, 2),
        )
        self.times_2 = nn.ConvTranspose2d(width, width, 2, 2)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Return the scaled maps; each of the input is [N, D, h, w]."""
        first, second, third, fourth = maps
        halved = functional.max_pool2d(fourth, 2, 2)
        return [self.times_4(first), self.times_2(second), third, halved]


class UperNet(nn.Module):
    """UperNet and its auxiliary head on four blocks."""

    def __init__(self, width: int, recipe: Recipe, num_classes: int) -> None:
        super().__init__()
        from transformers import UperNetConfig
        from transformers.models.upernet.modeling_upernet import UperNetFCNHead, UperNetHead

        config = UperNetConfig(
            hidden_size=recipe.channels,
            pool_scales=POOL_SCALES,
            num_labels=num_classes,
            auxiliary_channels=AUXILIARY_CHANNELS,
            auxiliary_in_channels=width,
        )
        self.pyramid = Pyramid(width)
        self.head = UperNetHead(config, [width] * 4)
        self.auxiliary = (
            UperNetFCNHead(config, [width] * 4, AUXILIARY_LEVEL)
            if recipe.auxiliary_weight
            else None
        )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Return the logits [N, C, 4 h, 4 w], and in training those of the auxiliary head."""
        scaled = self.pyramid(maps)
        logits = [self.head(scaled)]
        if self.training and self.auxiliary is not None:
            logits.append(self.auxiliary(scaled))
        return logits


class Linear(nn.Module):
    """Batch normalisation and a linear layer on each patch of the last block."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width)
        self.classifier = nn.Conv2d(width, num_classes, 1)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Return the logits [N, C, h, w]."""
        return [self.classifier(self.norm(maps[-1]))]


class Segmenter(nn.Module):
    """An encoder and a head; its encoder is a copy."""

    encoder: Any

    def __init__(self, encoder: nn.Module, recipe: Recipe, num_classes: int, seed: int) -> None:
        """Build the network on the CPU, in training mode.

        Args:
            encoder: A plain vision transformer of timm.
            recipe: What the network is like.
            num_classes: Number of classes of pixels.
            seed: Seed of the head's weights.
        """
        super().__init__()
        self.encoder = _prepared(encoder, recipe)
        self.linear = recipe.head == "linear"
        self.blocks = (len(self.encoder.blocks) - 1,) if self.linear else recipe.blocks
        width: int = self.encoder.embed_dim
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.head: nn.Module = (
                Linear(width, num_classes) if self.linear else UperNet(width, recipe, num_classes)
            )
        _share_statistics(self.head)
        self.train()

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return logits [N, C, h, w] of each head, the main one first.

        Args:
            images: [N, 3, S, S], normalised; S is the size of the recipe.
        """
        once = sorted(set(self.blocks))
        found = self.encoder.forward_intermediates(
            images, indices=once, norm=self.linear, intermediates_only=True
        )
        maps = dict(zip(once, found, strict=True))
        logits: list[Tensor] = self.head([maps[block] for block in self.blocks])
        return logits

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return the layers of the parameters, for timm's layer decay."""
        return {
            "stem": r"^encoder\.(?:cls_token|reg_token|pos_embed|patch_embed|norm_pre)",
            "blocks": r"^encoder\.blocks\.(\d+)",
            "head": r"^(?:encoder\.norm|head)",
        }

    def parameter_groups(self, recipe: Recipe) -> list[dict[str, Any]]:
        """Return parameter groups with the key `lr_scale`; biases, norms and tokens not decayed."""
        from timm.optim import param_groups_layer_decay

        names = [f"encoder.{name}" for name in self.encoder.no_weight_decay()]
        groups: list[dict[str, Any]] = param_groups_layer_decay(
            self, recipe.weight_decay, names, layer_decay=recipe.layer_decay
        )
        return groups


def _prepared(encoder: nn.Module, recipe: Recipe) -> nn.Module:
    """Return a copy of an encoder on the CPU for images of the recipe's size, with drop path.

    timm resamples the position embedding, which is trained at the new size.
    """
    from timm.layers import DropPath

    prepared: Any = copy.deepcopy(encoder).cpu().float().requires_grad_(True)
    prepared.set_input_size((recipe.size, recipe.size))
    for block, rate in zip(
        prepared.blocks, torch.linspace(0, recipe.drop_path, len(prepared.blocks)), strict=True
    ):
        for name in ("drop_path1", "drop_path2"):
            if rate and hasattr(block, name):
                setattr(block, name, DropPath(float(rate)))
    network: nn.Module = prepared
    return network


def _share_statistics(module: nn.Module) -> None:
    """Make batch normalisations use the pictures of all ranks."""
    for name, child in module.named_children():
        if type(child) is nn.BatchNorm2d:
            shared = BatchNorm(child.num_features, child.eps, child.momentum)
            shared.load_state_dict(child.state_dict())
            setattr(module, name, shared)
        else:
            _share_statistics(child)
