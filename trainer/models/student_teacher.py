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
    """Output of a network for a micro-batch; None for what was not asked for."""

    embeddings: Tensor
    """[n, out] of the global crops, after projector and predictor (if there is one)."""
    local_embeddings: Tensor | None
    """[l, out] of the local crops."""
    features: Tensor | None
    """[T, bottleneck] of the chosen patches, unit vectors."""
    prototypes: Tensor | None
    """[K, bottleneck], to compare the features with."""
    cls_tokens: Tensor
    """[n, D] of the global crops, output of the encoder, without gradient."""


class Network(EncoderNetwork):
    """The encoder with its heads. A teacher has no predictor; its batch norms use the batch.

    One call computes all that a loss needs. So there is one forward pass for each backward pass,
    which the wrappers that spread a network over several GPUs require.

    Args:
        model: Shape of the encoder.
        contrastive_head: Shape of projector and predictor.
        prototype_head: Shape of iBOT's head; None leaves out the head and the mask token.
        predictor: Whether to add a predictor (students with a teacher).
        drop_path: Drop path of the encoder (students only).
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
        self.together = contrastive_head.statistics == "together"
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
        seeds: Tensor | None = None,
        local_seeds: Tensor | None = None,
    ) -> Outputs:
        """Return embeddings of crops, and features of chosen patches.

        Args:
            images: Global crops [n, 3, H, W], normalised.
            local_images: Local crops [l, 3, h, w], normalised.
            mask: bool [n, P], True for patches that are hidden from the encoder (student only).
            patches: int64 [T], the patches to return features of, as indices into all n * P.
            seeds: int64 [n], seeds of drop path for the global crops (see `encode`).
            local_seeds: int64 [l], those for the local crops.
        """
        tokens = encode(self.encoder, images, mask, self.mask_token, seeds=seeds)
        kinds = [tokens[:, 0]]
        if local_images is not None:
            kinds.append(encode(self.encoder, local_images, seeds=local_seeds)[:, 0])
        embeddings, local_embeddings = self._embed(kinds)
        features = prototypes = None
        if patches is not None:
            assert self.prototype_head is not None, "features need iBOT's head"
            features = self.prototype_head(tokens[:, 1:].flatten(0, 1)[patches])
            prototypes = self.prototype_head.prototypes.weight()
        cls_tokens = tokens[:, 0].detach()
        return Outputs(embeddings, local_embeddings, features, prototypes, cls_tokens)

    def _embed(self, kinds: list[Tensor]) -> tuple[Tensor, Tensor | None]:
        """Return the embeddings of the cls tokens [n, D] of global and of local crops, if any."""
        parts = [torch.cat(kinds)] if self.together else kinds
        embeddings = torch.cat([self._embed_part(part) for part in parts])
        of_globals, *of_locals = embeddings.split([len(kind) for kind in kinds])
        return of_globals, of_locals[0] if of_locals else None

    def _embed_part(self, cls_tokens: Tensor) -> Tensor:
        embeddings: Tensor = self.projector(cls_tokens)
        return embeddings if self.predictor is None else self.predictor(embeddings)


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, share: float | Tensor) -> None:
    """Move the teacher towards the student by a share of their difference, buffers included.

    Call it once per optimiser step, for any number of micro-batches.

    Args:
        teacher: Teacher; the student has all of its weights, too.
        student: Student after the step.
        share: 1 - momentum; a scalar tensor if it is computed on the device.
    """
    values = student.state_dict()
    own = {name: _local(value) for name, value in teacher.state_dict().items()}
    steps = torch._foreach_sub([_local(values[name]) for name in own], list(own.values()))
    torch._foreach_mul_(steps, share)
    torch._foreach_add_(list(own.values()), steps)


def _local(value: Tensor) -> Tensor:
    """Return this rank's part of a tensor that is spread over the ranks, else the tensor."""
    return value.to_local() if isinstance(value, DTensor) else value
