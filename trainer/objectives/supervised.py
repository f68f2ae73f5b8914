"""Supervised cross-entropy over the caption's concept; the paper's own recipe is in `augreg`."""

import logging
from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer import distributed
from trainer.data.batch import Batch
from trainer.data.photometric import to_device
from trainer.data.shard_reader import Sample
from trainer.models.vit import EncoderConfig, EncoderNetwork, build_encoder, encode
from trainer.objectives.base import Objective, SettingsT, TargetReader, TeacherlessConfig, Terms
from trainer.objectives.collapse import feature_metrics
from trainer.objectives.micro_batch import MicroBatch
from transforms.core import storage
from transforms.core.errors import ConfigError, DamagedFileError
from transforms.core.seeding import derive
from transforms.core.shard_reader import CommittedShards
from transforms.core.shards import StageFolder
from transforms.core.stages import STAGES

if TYPE_CHECKING:
    from trainer.config import TrainConfig

log = logging.getLogger(__name__)


class SupervisedConfig(TeacherlessConfig):
    """Images are classified by the concept of their caption."""

    kind: Literal["supervised"] = "supervised"
    """`supervised`: images are classified by the concept of their caption."""


class Classified(NamedTuple):
    """Output of the student for images."""

    logits: Tensor
    """[n, classes]."""
    cls_tokens: Tensor
    """[n, D], output of the encoder, without gradient."""


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

    def forward(self, images: Tensor, seeds: Tensor | None = None) -> Classified:
        """Return the logits of images [n, 3, H, W]; see `encode` for the seeds."""
        cls_tokens = encode(self.encoder, images, seeds=seeds)[:, 0]
        return Classified(self.classes(cls_tokens), cls_tokens.detach())


class ConceptObjective(Objective[SettingsT]):
    """Base of the objectives that classify images by the concept of their caption."""

    @classmethod
    def concepts(cls, config: "TrainConfig") -> dict[str, int]:
        """Return the number of each concept.

        Raises:
            ConfigError, StorageError, DamagedFileError: See `concept_labels`.
        """
        return concept_labels(captions_folder(config))

    @classmethod
    def build_networks(cls, config: "TrainConfig") -> tuple[Classifier, None]:
        """Return the student; there is no teacher.

        Raises:
            ConfigError, StorageError, DamagedFileError: See `concept_labels`.
        """
        return Classifier(config.model, len(cls.concepts(config)), config.seed), None

    @classmethod
    def target_reader(cls, config: "TrainConfig") -> TargetReader:
        """Return what reads the number of a sample's concept, int64 [1].

        Raises:
            ConfigError, StorageError, DamagedFileError: See `concept_labels`.
        """
        return partial(label_of, labels=cls.concepts(config))

    def labelled(self, batch: Batch) -> list[tuple[MicroBatch, Tensor]]:
        """Return the micro-batches, each with the labels of its global images, int64 [n]."""
        micro_batches = self.micro_batches(batch)
        crops_per_caption = len(batch.crops.global_pixels) // len(batch.targets)
        labels = to_device(batch.targets[:, 0].repeat_interleave(crops_per_caption), self.device)
        return list(zip(micro_batches, labels.chunk(len(micro_batches)), strict=True))


class Supervised(ConceptObjective[SupervisedConfig]):
    """The loss is the only term."""

    settings_class = SupervisedConfig

    def losses(self, batch: Batch, step: int) -> list[Callable[[], Terms]]:
        """Return the cross-entropy of each micro-batch."""
        return [partial(self._terms, part, labels) for part, labels in self.labelled(batch)]

    def _terms(self, micro_batch: MicroBatch, labels: Tensor) -> Terms:
        logits, cls_tokens = self.run(
            self.student, micro_batch.global_images, micro_batch.global_seeds
        )
        self.collapse_metrics = feature_metrics(cls_tokens)
        dtype = torch.promote_types(logits.dtype, torch.float32)
        return {"loss": micro_batch.share * functional.cross_entropy(logits.to(dtype), labels)}


def captions_folder(config: "TrainConfig") -> str:
    """Return the folder or URL of the caption shards that name the concepts."""
    return config.captions or storage.join(config.run, "captions")


@cache
def concept_labels(captions: str) -> dict[str, int]:
    """Return the concepts of a complete captions stage in alphabetic order, with their numbers.

    Args:
        captions: Folder or URL of the stage.

    Raises:
        ConfigError: The folder holds no captions, or fewer than two concepts.
        StorageError: The stage is not complete or cannot be read.
        DamagedFileError: A shard is damaged.
    """
    shards = CommittedShards.open(StageFolder(captions, STAGES["captions"]), "captions")
    concepts: set[str] = set()
    for table in shards.tables(["concept"]):
        concepts.update(table["concept"].unique().to_pylist())
    if len(concepts) < 2:
        raise ConfigError(
            f"captions {captions} (key captions, or run) have the concepts {list(concepts)} alone: "
            "expected two or more for the supervised objective to tell apart"
        )
    if distributed.rank() == 0:
        log.info("%d concepts in %s", len(concepts), captions)
    return {concept: number for number, concept in enumerate(sorted(concepts))}


def label_of(sample: Sample, labels: dict[str, int]) -> Tensor:
    """Return the number of a sample's concept, int64 [1].

    Raises:
        DamagedFileError: The sample has no concept, or one that the captions do not have.
    """
    concept = sample.meta.concept
    if concept not in labels:
        raise DamagedFileError(
            f"the concept of sample {sample.caption_id} is {concept!r}: expected one of the "
            f"{len(labels)} of the run's captions"
        )
    return torch.tensor([labels[concept]])
