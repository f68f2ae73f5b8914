"""Student and teacher: the encoder with its heads. Source: paper section 3.3."""

from typing import Any

import torch
from torch import Tensor, nn

from trainer.heads import (
    ContrastiveHeadConfig,
    PrototypeHead,
    PrototypeHeadConfig,
    build_predictor,
    build_projector,
)
from trainer.vit import EncoderConfig, build_encoder, encode_masked
from transforms.core.seeding import derive


class Network(nn.Module):
    """The encoder with its heads; a teacher has no predictor, and its batch norms use the batch.

    Args:
        model: The encoder's shape.
        contrastive_head: Of projector and predictor.
        prototype_head: Of iBOT; None leaves it and the mask token out.
        predictor: Whether there is one (students with a teacher).
        drop_path: Of the encoder (students only).
        seed: Same seed, same weights.
    """

    def __init__(
        self,
        model: EncoderConfig,
        contrastive_head: ContrastiveHeadConfig,
        prototype_head: PrototypeHeadConfig | None,
        *,
        predictor: bool,
        drop_path: float,
        seed: int,
    ) -> None:
        super().__init__()
        self.encoder = build_encoder(model, derive(seed, "encoder"), drop_path=drop_path)
        self.prototype_head: PrototypeHead | None = None
        self.mask_token: nn.Parameter | None = None
        self.predictor: nn.Module | None = None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "heads"))
            self.projector = build_projector(model.width, contrastive_head)
            if prototype_head is not None:
                self.prototype_head = PrototypeHead(model.width, prototype_head)
                self.mask_token = nn.Parameter(torch.empty(model.width))
                nn.init.trunc_normal_(self.mask_token, std=0.02)
            if predictor:
                self.predictor = build_predictor(contrastive_head)

    def forward(
        self, images: Tensor, mask: Tensor | None = None, *, hide: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Embeddings of images, and features of their masked patches.

        Args:
            images: [n, 3, H, W], normalised.
            mask: bool [n, P], True for the patches that iBOT asks about.
            hide: Whether the encoder sees the mask token in their place (the student's does).

        Returns:
            [n, out] from the projector and, where there is one, the predictor; and
            [T, bottleneck] of the T masked patches in row order, None without a mask.
        """
        encoder: Any = self.encoder
        if mask is not None and hide:
            assert self.mask_token is not None, "hiding patches needs the prototype head"
            tokens = encode_masked(encoder, images, mask, self.mask_token)
        else:
            tokens = encoder.forward_features(images)
        embeddings: Tensor = self.projector(tokens[:, 0])
        if self.predictor is not None:
            embeddings = self.predictor(embeddings)
        if mask is None or self.prototype_head is None:
            return embeddings, None
        return embeddings, self.prototype_head(tokens[:, 1:][mask])


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Teacher = momentum * teacher + (1 - momentum) * student, buffers included.

    Call it once per optimiser step, however many pieces the batch came in.
    """
    values = student.state_dict()
    for name, value in teacher.state_dict().items():
        value.lerp_(values[name], 1.0 - momentum)
