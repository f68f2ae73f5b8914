"""From a training's config to its networks and its objective, whichever it is."""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from trainer.config import TrainConfig, captions_folder, images_per_step
from trainer.data.shard_reader import Sample
from trainer.models.text_encoder import tokens_of
from trainer.models.vit import EncoderNetwork
from trainer.objectives import clip, supervised, synclr
from trainer.objectives.base import Objective, StepSettings
from trainer.objectives.supervised import concept_labels, label_of

OBJECTIVES: dict[str, type[Objective]] = {
    "contrastive": synclr.SynCLR,
    "supervised": supervised.Supervised,
    "clip": clip.CLIP,
}


def build_networks(config: TrainConfig) -> tuple[EncoderNetwork, EncoderNetwork | None]:
    """Student and teacher (None without one), on the CPU; each has an `encoder`.

    Raises:
        StorageError: The objective is supervised, and the run's captions cannot be read.
    """
    if config.objective.kind == "supervised":
        num_classes = len(concept_labels(captions_folder(config)))
        return supervised.Classifier(config.model, num_classes, config.seed), None
    if config.objective.kind == "clip":
        return clip.ImageText(config.model, config.objective.text, config.seed), None
    return synclr.build_networks(config.model, config.objective, config.seed)


def build_objective(
    config: TrainConfig, student: nn.Module, teacher: nn.Module | None
) -> Objective:
    """The objective of networks that `build_networks` made, now perhaps wrapped."""
    settings = StepSettings(
        model=config.model,
        photometric=config.photometric,
        images_per_caption=images_per_step(config),
        captions_per_batch=config.captions_per_batch,
        accumulation=config.accumulation,
        precision=config.precision,
        compiled=config.execution.compile,
        seed=config.seed,
    )
    return OBJECTIVES[config.objective.kind](config.objective, settings, student, teacher)


def target_reader(config: TrainConfig) -> Callable[[Sample], Tensor] | None:
    """What the objective has to know of a sample beside its images, int64; None if nothing."""
    if config.objective.kind == "supervised":
        return partial(label_of, labels=concept_labels(captions_folder(config)))
    if config.objective.kind == "clip":
        return partial(tokens_of, config=config.objective.text)
    return None
