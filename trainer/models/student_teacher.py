"""Student and teacher: the encoder with its heads. Source: paper section 3.3."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from trainer.models.heads import (
    ContrastiveHeadConfig,
    PrototypeHead,
    PrototypeHeadConfig,
    build_predictor,
    build_projector,
)
from trainer.models.vit import EncoderConfig, EncoderNetwork, build_encoder, encode
from transforms.core.seeding import derive


class Outputs(NamedTuple):
    """What a network says about a piece; None where it was not asked."""

    embeddings: Tensor
    """[n, out] of the global crops, from the projector and, where there is one, the predictor."""
    local_embeddings: Tensor | None
    """[l, out] of the local crops."""
    features: Tensor | None
    """[T, bottleneck] of the chosen patches, unit vectors."""
    prototypes: Tensor | None
    """[K, bottleneck], which the features are compared with."""
    cls_tokens: Tensor
    """[n, D] of the global crops, as the encoder gives them, without gradient."""


class Network(EncoderNetwork):
    """The encoder with its heads; a teacher has no predictor, and its batch norms use the batch.

    One call takes all that a loss needs, so that each backward pass belongs to one forward pass,
    as the wrappers that spread a network over several GPUs want it.

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
        self,
        images: Tensor,
        local_images: Tensor | None = None,
        mask: Tensor | None = None,
        patches: Tensor | None = None,
    ) -> Outputs:
        """Embeddings of crops, and features of chosen patches.

        Args:
            images: Global crops [n, 3, H, W], normalised.
            local_images: Local crops [l, 3, h, w], normalised.
            mask: bool [n, P], True for the patches that the encoder does not see (the student's).
            patches: int64 [T], the patches that iBOT asks about, counted over all n * P.
        """
        tokens = encode(self.encoder, images, mask, self.mask_token)
        embeddings = self._embed(tokens)
        local_embeddings = None
        if local_images is not None:
            local_tokens = encode(self.encoder, local_images)
            local_embeddings = self._embed(local_tokens)
        features = prototypes = None
        if patches is not None:
            assert self.prototype_head is not None, "only iBOT asks about patches"
            features = self.prototype_head(tokens[:, 1:].flatten(0, 1)[patches])
            prototypes = self.prototype_head.prototypes.weight()
        cls_tokens = tokens[:, 0].detach()
        return Outputs(embeddings, local_embeddings, features, prototypes, cls_tokens)

    def _embed(self, tokens: Tensor) -> Tensor:
        embeddings: Tensor = self.projector(tokens[:, 0])
        if self.predictor is not None:
            embeddings = self.predictor(embeddings)
        return embeddings


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, share: float | Tensor) -> None:
    """Move the teacher towards the student by a share of what lies between, buffers included.

    Call it once per optimiser step, however many pieces the batch came in.

    Args:
        teacher: Has no weights that the student has not.
        student: As it is now.
        share: 1 - momentum; as a scalar tensor it may be decided on the device.
    """
    values = student.state_dict()
    own = {name: _local(value) for name, value in teacher.state_dict().items()}
    steps = torch._foreach_sub([_local(values[name]) for name in own], list(own.values()))
    torch._foreach_mul_(steps, share)
    torch._foreach_add_(list(own.values()), steps)


def _local(value: Tensor) -> Tensor:
    """This rank's part of a tensor that is spread over the ranks; else the tensor."""
    return value.to_local() if isinstance(value, DTensor) else value
