"""Supervised cross-entropy over the caption's concept, which the paper compares with (table 5)."""

import logging
from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer import distributed
from trainer.data.batch import Batch
from trainer.data.photometric import to_device
from trainer.data.shard_reader import Sample, read_stage_index
from trainer.models.vit import EncoderConfig, EncoderNetwork, build_encoder, encode
from trainer.objectives.base import Objective
from trainer.objectives.collapse import feature_signs
from trainer.objectives.micro_batch import Piece
from transforms.core import storage
from transforms.core.errors import ConfigError, DamagedFileError, reading
from transforms.core.seeding import derive

log = logging.getLogger(__name__)


class Classified(NamedTuple):
    """What a student says about images."""

    logits: Tensor
    """[n, classes]."""
    cls_tokens: Tensor
    """[n, D], as the encoder gives them, without gradient."""


class Classifier(EncoderNetwork):
    """The encoder with a linear layer on its cls token."""

    def __init__(self, model: EncoderConfig, num_classes: int, seed: int) -> None:
        super().__init__()
        self.encoder = build_encoder(model, derive(seed, "encoder"), drop_path=model.drop_path)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "heads"))
            self.classes = nn.Linear(model.width, num_classes)
            nn.init.trunc_normal_(self.classes.weight, std=0.02)
            nn.init.zeros_(self.classes.bias)

    def forward(self, images: Tensor) -> Classified:
        """The classes of images [n, 3, H, W]."""
        cls_tokens = encode(self.encoder, images)[:, 0]
        return Classified(self.classes(cls_tokens), cls_tokens.detach())


class Supervised(Objective):
    """The loss is its only term."""

    def _losses(self, batch: Batch, step: int) -> list[Callable[[], dict[str, Tensor]]]:
        pieces = self._pieces(batch)
        crops_per_caption = len(batch.crops.global_pixels) // len(batch.targets)
        labels = to_device(batch.targets[:, 0].repeat_interleave(crops_per_caption), self.device)
        return [
            partial(self._terms, piece, part)
            for piece, part in zip(pieces, labels.chunk(len(pieces)), strict=True)
        ]

    def _terms(self, piece: Piece, labels: Tensor) -> dict[str, Tensor]:
        logits, cls_tokens = self._run(self.student, piece.global_images)
        self.signs = feature_signs(cls_tokens)
        dtype = torch.promote_types(logits.dtype, torch.float32)
        return {"loss": piece.share * functional.cross_entropy(logits.to(dtype), labels)}


@cache
def concept_labels(captions: str) -> dict[str, int]:
    """The concepts of a complete captions stage, in alphabetic order, with their numbers.

    Args:
        captions: Its folder or URL.

    Raises:
        ConfigError: It is none, or has fewer than two concepts.
        StorageError: It is not complete or cannot be read.
        DamagedFileError: A shard is damaged, or none of captions.
    """
    url = storage.join(captions, "index.parquet")
    index = read_stage_index(url, "captions", "captions", ".parquet")
    concepts: set[str] = set()
    for path in index.table["path"].to_pylist():
        url = storage.join(index.folder, path)
        content = storage.read_bytes(url)
        with reading(f"{url}, expected to be a shard of a finished captions stage (key captions),"):
            shard = pq.read_table(pa.BufferReader(content), columns=["concept"])
            concepts.update(shard["concept"].unique().to_pylist())
    if len(concepts) < 2:
        raise ConfigError(
            f"captions {captions} (key captions, or run) have the concepts {list(concepts)} alone: "
            "expected two or more for the supervised objective to tell apart"
        )
    if distributed.rank() == 0:
        log.info("%d concepts in %s", len(concepts), captions)
    return {concept: number for number, concept in enumerate(sorted(concepts))}


def label_of(sample: Sample, labels: dict[str, int]) -> Tensor:
    """int64 [1], the number of the sample's concept.

    Raises:
        DamagedFileError: It has none, or one that the captions do not have.
    """
    concept = sample.meta.get("concept")
    if concept not in labels:
        raise DamagedFileError(
            f"the concept of sample {sample.caption_id} is {concept!r}: expected one of the "
            f"{len(labels)} of the run's captions"
        )
    return torch.tensor([labels[concept]])
