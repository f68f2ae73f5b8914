"""The heads: MoCo v3's projector and predictor, and DINO's prototype head for iBOT.

Source: paper section 3.3, MoCo v3 and the authors' code (github.com/google-research/syn-rep-learn,
`SynCLR/train_pytorch/models/head.py`). Batch normalisation is our own module: torch's
`SyncBatchNorm` does not run on a CPU. With ours, two gloo processes compute exactly what one does.
Deliberate difference: heads with `norm: bn` start from torch's weights, as in MoCo v3; the authors'
code draws theirs from a truncated normal distribution, too.
"""

import itertools
from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from trainer import distributed
from transforms.core.config import Config

Norm = Literal["bn", "ln", "ln_relu"]


class ContrastiveHeadConfig(Config):
    """Projector (D, hidden, hidden, out), and predictor of students with a teacher."""

    norm: Norm = "bn"
    """Layers of projector and predictor: `bn` has batch norm over all ranks and ReLU (MoCo v3);
    `ln` has layer norm, GELU and biases, and starts from a truncated normal distribution (the
    default of the authors' code); `ln_relu` is `bn` with layer norm (ours, `ln` of earlier
    versions)."""
    statistics: Literal["together", "apart"] = "together"
    """Rows that a batch norm takes mean and variance of: those of global and local crops `together`
    (the authors' code), or of each kind `apart` (ours, all that earlier versions had). No effect
    without local crops, and with layer norm."""
    hidden: PositiveInt = 4096
    """Width of the hidden layers of projector and predictor (MoCo v3 and the authors' code:
    4096)."""
    out: PositiveInt = 256
    """Size of the embedding that is compared (MoCo v3 and the authors' code: 256)."""


class PrototypeHeadConfig(Config):
    """iBOT's head (D, hidden, hidden, bottleneck) and its prototypes."""

    hidden: PositiveInt = 2048
    """Width of the two hidden layers of iBOT's head (DINO and the authors' code: 2048)."""
    bottleneck: PositiveInt = 256
    """Size of the normalised vector that is compared with the prototypes (DINO and the authors'
    code: 256)."""
    num_prototypes: PositiveInt = 65_536
    """Prototypes that a patch is compared with (paper: 65,536; README of the authors' code:
    8,192)."""


class BatchNorm(nn.Module):
    """Batch normalisation of rows [N, D] over the rows of all ranks, in at least float32.

    N must be the same on all ranks. In training mode it uses the mean and the (biased) variance of
    the batch, and keeps running estimates for evaluation.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, width: int, *, affine: bool = True, momentum: float = 0.1) -> None:
        super().__init__()
        self.momentum = momentum
        self.eps = 1e-5
        self.weight = nn.Parameter(torch.ones(width)) if affine else None
        self.bias = nn.Parameter(torch.zeros(width)) if affine else None
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, rows: Tensor) -> Tensor:
        """Return the normalised rows [N, D]."""
        dtype = rows.dtype
        rows = rows.to(torch.promote_types(dtype, torch.float32))
        if self.training:
            ranks = distributed.world_size()
            mean = distributed.sum_over_ranks(rows.mean(dim=0)) / ranks
            centred = rows - mean
            variance = distributed.sum_over_ranks(centred.square().mean(dim=0)) / ranks
            with torch.no_grad():
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
                self.running_var.lerp_(variance.to(self.running_var.dtype), self.momentum)
        else:
            centred, variance = rows - self.running_mean, self.running_var
        normalised = centred * (variance + self.eps).rsqrt()
        if self.weight is not None and self.bias is not None:
            normalised = normalised * self.weight + self.bias
        return normalised.to(dtype)


def _norm(kind: Norm, width: int, *, affine: bool = True) -> nn.Module:
    if kind == "bn":
        return BatchNorm(width, affine=affine)
    return nn.LayerNorm(width, elementwise_affine=affine)


def _mlp(widths: list[int], norm: Norm) -> nn.Sequential:
    """Return linear layers, each normalised, with an activation between them.

    The last layer has no bias, and its norm is not affine.
    """
    layers: list[nn.Module] = []
    for number, (width_in, width_out) in enumerate(itertools.pairwise(widths), start=1):
        last = number == len(widths) - 1
        linear = nn.Linear(width_in, width_out, bias=norm == "ln" and not last)
        if norm == "ln":
            _init_truncated(linear)
        layers += [linear, _norm(norm, width_out, affine=not last)]
        if not last:
            layers.append(nn.GELU() if norm == "ln" else nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def _init_truncated(layer: nn.Linear) -> None:
    """Draw the weights of a layer from a truncated normal distribution; its biases are 0."""
    nn.init.trunc_normal_(layer.weight, std=0.02)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def build_projector(width: int, config: ContrastiveHeadConfig) -> nn.Sequential:
    """Return the projector, three layers from cls tokens [N, D] to embeddings [N, out]."""
    return _mlp([width, config.hidden, config.hidden, config.out], config.norm)


def build_predictor(config: ContrastiveHeadConfig) -> nn.Sequential:
    """Return the predictor, two layers from the student's embeddings to the teacher's [N, out]."""
    return _mlp([config.out, config.hidden, config.out], config.norm)


class PrototypeHead(nn.Module):
    """DINO's head in two steps: from patch tokens to features, and from features to prototypes.

    `forward` is the first step. The loss does the second one, in chunks.
    """

    def __init__(self, width: int, config: PrototypeHeadConfig) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, config.hidden),
            nn.GELU(),
            nn.Linear(config.hidden, config.hidden),
            nn.GELU(),
            nn.Linear(config.hidden, config.bottleneck),
        )
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                _init_truncated(layer)
        self.prototypes = Prototypes(config.bottleneck, config.num_prototypes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return unit vectors [T, bottleneck] of patch tokens [T, D]."""
        features: Tensor = self.mlp(tokens)
        features = features.to(torch.promote_types(features.dtype, torch.float32))
        return functional.normalize(features, dim=-1)


class Prototypes(nn.Module):
    """A linear layer without bias, with its rows stored as direction and gain (weight norm)."""

    def __init__(self, width: int, num_prototypes: int) -> None:
        super().__init__()
        self.direction = nn.Parameter(torch.empty(num_prototypes, width))
        self.gain = nn.Parameter(torch.ones(num_prototypes))
        nn.init.trunc_normal_(self.direction, std=0.02)

    def weight(self) -> Tensor:
        """Return the matrix of the layer [K, bottleneck]: unit rows times their gain."""
        return functional.normalize(self.direction, dim=-1) * self.gain[:, None]

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits [T, K] of features [T, bottleneck]."""
        return functional.linear(features, self.weight())
