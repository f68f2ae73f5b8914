"""CLIP on the same data, which the paper compares with (table 3): an image and its caption's text.

One of the caption's images is taken in each step. Deliberate difference: captions that are equal
are positives of each other wherever they stand in the batch, as in our contrastive loss.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from trainer import distributed
from trainer.data.batch import Batch
from trainer.data.photometric import to_device
from trainer.losses.contrastive import multi_positive_loss
from trainer.models.text_encoder import TextConfig, TextEncoder
from trainer.models.vit import EncoderConfig, EncoderNetwork, build_encoder, encode
from trainer.objectives.base import Objective, gather_keys
from trainer.objectives.collapse import feature_signs
from trainer.objectives.micro_batch import Piece
from transforms.core.seeding import derive

FIRST_TEMPERATURE = 0.07
LOWEST_TEMPERATURE = 0.01


class Pairs(NamedTuple):
    """What a student says about images and their captions."""

    images: Tensor
    """[n, out]."""
    texts: Tensor
    """[n, out]."""
    temperature: Tensor
    """[1], learned."""
    cls_tokens: Tensor
    """[n, D] of the images, as the encoder gives them, without gradient."""


class ImageText(EncoderNetwork):
    """The encoder and the text encoder, each with a linear layer to what they share."""

    def __init__(self, model: EncoderConfig, text: TextConfig, seed: int) -> None:
        super().__init__()
        self.encoder = build_encoder(model, derive(seed, "encoder"), drop_path=model.drop_path)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "heads"))
            self.text_encoder = TextEncoder(text)
            self.image_projection = nn.Linear(model.width, text.out, bias=False)
            self.text_projection = nn.Linear(text.width, text.out, bias=False)
            for layer in (self.image_projection, self.text_projection):
                nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
        self.log_scale = nn.Parameter(torch.tensor([-math.log(FIRST_TEMPERATURE)]))

    def forward(self, images: Tensor, tokens: Tensor) -> Pairs:
        """Embeddings of images [n, 3, H, W] and captions int64 [n, context]."""
        cls_tokens = encode(self.encoder, images)[:, 0]
        return Pairs(
            images=self.image_projection(cls_tokens),
            texts=self.text_projection(self.text_encoder(tokens)),
            temperature=self.log_scale.neg().exp(),
            cls_tokens=cls_tokens.detach(),
        )

    @torch.no_grad()
    def keep_within_bounds(self) -> None:
        """Hold the temperature at `LOWEST_TEMPERATURE` or above.

        A bound inside `forward` would have no gradient beyond it, and so hold it there for good.
        """
        self.log_scale.clamp_(max=-math.log(LOWEST_TEMPERATURE))


class CLIP(Objective):
    """Terms "image" (which text belongs to an image) and "text"; the loss is their mean."""

    def _losses(self, batch: Batch, step: int) -> list[Callable[[], dict[str, Tensor]]]:
        assert self.settings.accumulation == 1, "keys with a gradient need the whole batch at once"
        (piece,) = self._pieces(batch)
        return [partial(self._terms, piece, to_device(batch.targets, self.device))]

    def _terms(self, piece: Piece, tokens: Tensor) -> dict[str, Tensor]:
        pairs: Pairs = self._run(self.student, piece.global_images, tokens)
        ids = piece.global_ids
        all_ids = distributed.gather(ids)
        image_keys, text_keys = gather_keys(pairs.images), gather_keys(pairs.texts)
        self.signs = feature_signs(pairs.cls_tokens)
        terms = {
            name: multi_positive_loss(
                anchors,
                keys,
                ids,
                all_ids,
                temperature=pairs.temperature,
                chunk_size=self.config.contrastive_chunk,
                compiled=self.settings.compiled,
            )
            for name, anchors, keys in (
                ("image", pairs.images, text_keys),
                ("text", pairs.texts, image_keys),
            )
        }
        return {"loss": (terms["image"] + terms["text"]) / 2, **terms}
