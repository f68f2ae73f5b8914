"""CLIP on the same data, which the paper compares with: an image and its caption's text.

Source: paper section 4.3, table 10. Each step takes one of the caption's images. Deliberate
difference: captions that are equal are positives of each other wherever they are in the batch, as
in our contrastive loss.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from trainer import distributed
from trainer.data.batch import Batch
from trainer.data.photometric import to_device
from trainer.data.shard_reader import Sample
from trainer.losses.contrastive import multi_positive_loss
from trainer.models.flops import BACKWARD, FORWARD, block_flops
from trainer.models.text_encoder import TextConfig, TextEncoder, tokenize
from trainer.models.vit import EncoderConfig, EncoderNetwork, build_encoder, encode
from trainer.objectives.base import (
    Objective,
    TargetReader,
    TeacherlessConfig,
    Terms,
    gather_keys,
)
from trainer.objectives.collapse import feature_metrics
from trainer.objectives.micro_batch import MicroBatch
from transforms.core.config import no_fingerprint
from transforms.core.seeding import derive

if TYPE_CHECKING:
    from trainer.config import TrainConfig

FIRST_TEMPERATURE = 0.07
LOWEST_TEMPERATURE = 0.01


class ClipConfig(TeacherlessConfig):
    """One image of each caption is compared with the texts of the batch."""

    kind: Literal["clip"] = "clip"
    """`clip`: one image of each caption is compared with the texts of the batch, and each text
    with the images."""
    text: TextConfig = TextConfig()
    contrastive_chunk: PositiveInt | None = no_fingerprint(None)
    """Images or texts at a time in the loss; null takes all of a batch at once."""


class Pairs(NamedTuple):
    """Embeddings of images and their captions."""

    images: Tensor
    """[n, out]."""
    texts: Tensor
    """[n, out]."""
    temperature: Tensor
    """[1], learned."""
    cls_tokens: Tensor
    """[n, D], output of the encoder for the images, without gradient."""


class ImageText(EncoderNetwork):
    """The encoder and the text encoder, each with a linear layer to their shared space."""

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

    def forward(self, images: Tensor, tokens: Tensor, seeds: Tensor | None = None) -> Pairs:
        """Return embeddings of images [n, 3, H, W] and captions int64 [n, context].

        See `encode` for the seeds.
        """
        cls_tokens = encode(self.encoder, images, seeds=seeds)[:, 0]
        return Pairs(
            images=self.image_projection(cls_tokens),
            texts=self.text_projection(self.text_encoder(tokens)),
            temperature=self.log_scale.neg().exp(),
            cls_tokens=cls_tokens.detach(),
        )

    @torch.no_grad()
    def keep_within_bounds(self) -> None:
        """Keep the temperature at `LOWEST_TEMPERATURE` or above.

        A bound inside `forward` would have no gradient beyond it, and the temperature would never
        come back from there.
        """
        self.log_scale.clamp_(max=-math.log(LOWEST_TEMPERATURE))


class CLIP(Objective[ClipConfig]):
    """Terms "image" (which text belongs to an image) and "text"; the loss is their mean."""

    settings_class = ClipConfig
    one_image_per_caption = True

    @classmethod
    def build_networks(cls, config: "TrainConfig") -> tuple[ImageText, None]:
        """Return the student; there is no teacher."""
        return ImageText(config.model, cls.settings_of(config).text, config.seed), None

    @classmethod
    def target_reader(cls, config: "TrainConfig") -> TargetReader:
        """Return what reads a caption as tokens, int64 [context]."""
        return partial(caption_tokens, text=cls.settings_of(config).text)

    @classmethod
    def flops_beyond_student(cls, config: "TrainConfig") -> float:
        """Return the operations of the text encoder for one caption."""
        text = cls.settings_of(config).text
        return (FORWARD + BACKWARD) * text.depth * block_flops(text.context, text.width)

    @classmethod
    def check(cls, config: "TrainConfig") -> None:
        """Check accumulation, and that there is one crop of an image."""
        if config.accumulation > 1:
            raise ValueError(
                f"accumulation is {config.accumulation}: expected 1, since objective.kind is "
                "'clip', which takes the whole batch at once"
            )
        if config.crops.num_global != 1:
            raise ValueError(
                f"crops.num_global is {config.crops.num_global}: expected 1, since objective.kind "
                "is 'clip'"
            )

    def losses(self, batch: Batch, step: int) -> list[Callable[[], Terms]]:
        """Return one function: all keys need a gradient, so there is one micro-batch."""
        (micro_batch,) = self.micro_batches(batch)
        return [partial(self._terms, micro_batch, to_device(batch.targets, self.device))]

    def _terms(self, micro_batch: MicroBatch, tokens: Tensor) -> Terms:
        pairs: Pairs = self.run(
            self.student, micro_batch.global_images, tokens, micro_batch.global_seeds
        )
        ids = micro_batch.global_ids
        all_ids = distributed.gather(ids)
        image_keys, text_keys = gather_keys(pairs.images), gather_keys(pairs.texts)
        self.collapse_metrics = feature_metrics(pairs.cls_tokens)
        terms = {
            name: multi_positive_loss(
                anchors,
                keys,
                ids,
                all_ids,
                temperature=pairs.temperature,
                chunk_size=self.settings.contrastive_chunk,
                compiled=self.config.execution.compile,
            )
            for name, anchors, keys in (
                ("image", pairs.images, text_keys),
                ("text", pairs.texts, image_keys),
            )
        }
        return {"loss": (terms["image"] + terms["text"]) / 2, **terms}


def caption_tokens(sample: Sample, text: TextConfig) -> Tensor:
    """Return the tokens of a sample's caption, int64 [context]."""
    return tokenize(sample.text, text)
