"""Semantic segmentation: UperNet or a linear head on the encoder, trained end to end, mIoU.

Source: paper section 4 and appendix (ADE20k). Nothing is chosen on validation pictures, so that
training and validation pictures together are trained on, as in the paper. The trained encoder is
scored, and the untrained ones if the settings ask for it; pixels are not.
"""

import json
import logging
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trainer.evaluate.datasets import LabelledSet
from trainer.evaluate.features import Subject
from trainer.evaluate.protocols.base import Evaluation, Protocol
from trainer.evaluate.segmentation import iou
from trainer.evaluate.segmentation.recipe import SegmentationConfig, is_plain, recipe_for
from transforms.core.config import fingerprint_fields
from transforms.core.errors import ConfigError
from transforms.core.progress import bar
from transforms.core.scores import Score
from transforms.core.seeding import derive

if TYPE_CHECKING:
    from trainer.evaluate.segmentation.testing import Tested
    from trainer.evaluate.segmentation.training import SegmentationTraining

log = logging.getLogger(__name__)

STATE_VERSION = 1
"""Version of the states on disk. Raise it when a training would continue differently."""


@dataclass(frozen=True)
class Trial:
    """The result of one encoder."""

    counts: NDArray[np.int64]  # [N, 3, C]
    details: dict[str, Any]
    unreadable: list[str]
    seconds: float


@dataclass(frozen=True)
class SegmentationProtocol(Protocol[SegmentationConfig]):
    """Trains encoders to label pixels, and scores them."""

    def scores(self, evaluation: Evaluation, settings: SegmentationConfig) -> list[Score]:
        """Return one score per data set and kind of encoder; the ranks train together."""
        kinds = ("trained", "untrained") if settings.untrained else ("trained",)
        scores = []
        for dataset in evaluation.datasets:
            for kind in kinds:
                subjects = [s for s in evaluation.subjects if s.kind == kind]
                if not all(is_plain(subject.encoder) for subject in subjects):
                    log.warning("%s needs a plain vision transformer: no score", self.name)
                    continue
                trials = [_trial(evaluation, settings, dataset, s) for s in subjects]
                if trials:
                    scores.append(mean_score(kind, self.name, dataset, trials))
        return scores


def mean_score(kind: str, protocol: str, dataset: LabelledSet, trials: Sequence[Trial]) -> Score:
    """Return the mean over the encoders of one kind, which differ in their seeds."""
    counts = [trial.counts for trial in trials]
    values = [float(iou.mean_iou(of_pictures.sum(0))) for of_pictures in counts]
    interval = iou.bootstrap(counts)
    return Score(
        encoder=kind,
        dataset=dataset.name,
        protocol=protocol,
        metric="mIoU",
        value=statistics.mean(values),
        error=interval.error,
        spread=statistics.stdev(values) if len(values) > 1 else None,
        values=values,
        chance=iou.chance(counts[0].sum(0)),
        num_classes=len(dataset.classes),
        num_train=len(dataset.train) + len(dataset.val),
        num_test=len(counts[0]),
        details=[trial.details for trial in trials],
        interval=[interval.low, interval.high],
        unreadable=list(dict.fromkeys(name for trial in trials for name in trial.unreadable)),
        protocol_s=round(sum(trial.seconds for trial in trials), 2),
    )


def _trial(
    evaluation: Evaluation, settings: SegmentationConfig, dataset: LabelledSet, subject: Subject
) -> Trial:
    """Train one encoder and test it; all ranks together."""
    from trainer.evaluate.segmentation.pictures import Masked, RandomCrops

    started = time.monotonic()
    training = _training(evaluation, settings, dataset, subject)
    splits = [dataset.train, dataset.val]
    pictures = Masked(
        [path for split in splits for path in split.pictures],  # type: ignore[misc]
        [mask for split in splits for mask in split.masks],
        len(dataset.classes),
    )
    fill = tuple(round(255 * value) for value in training.input.mean)
    training.run(RandomCrops(pictures, training.recipe.size, fill, training.seed))
    tested = _tested(training, dataset)
    if not len(tested.counts):
        raise ConfigError(f"no test picture of data set {dataset.name!r} can be used")
    for name in (lost := [*training.lost, *tested.unreadable]):
        log.warning("cannot be used and is left out of %s: %s", dataset.name, name)
    found = iou.shares(tested.counts.sum(0))
    details = {
        "head": settings.head,
        "steps": training.recipe.num_steps,
        "batch": training.recipe.batch_size,
        "size": training.recipe.size,
        "pixel accuracy": round(found.accuracy, 2),
        "mean per-class accuracy": round(found.class_accuracy, 2),
    }
    return Trial(tested.counts, details, lost, time.monotonic() - started)


def _training(
    evaluation: Evaluation, settings: SegmentationConfig, dataset: LabelledSet, subject: Subject
) -> "SegmentationTraining":
    from trainer.evaluate import states
    from trainer.evaluate.segmentation.network import Segmenter
    from trainer.evaluate.segmentation.training import Machine, SegmentationTraining

    assert subject.encoder is not None and subject.input is not None, "pixels are not trained"
    config = evaluation.config
    recipe = recipe_for(settings, subject.encoder)
    device = str(next(subject.encoder.parameters()).device)
    made_from = [STATE_VERSION, subject.digest, dataset.identity, config.seed]
    content = json.dumps([*made_from, config.precision, fingerprint_fields(settings)])
    seed = derive(config.seed, "segmentation")
    return SegmentationTraining(
        Segmenter(subject.encoder, recipe, len(dataset.classes), seed),
        recipe,
        subject.input,
        Machine(device, config.num_workers, config.precision == "bf16"),
        seed,
        states.url_of(config.run, "segmentation", dataset.name, content)
        if subject.digest
        else None,
    )


def _tested(training: "SegmentationTraining", dataset: LabelledSet) -> "Tested":
    """Return the counts of all test pictures on every rank, each of which tests its share."""
    from trainer import distributed
    from trainer.evaluate.segmentation.pictures import Masked, WholePictures
    from trainer.evaluate.segmentation.testing import Tested, count_pictures

    masked = Masked(dataset.test.pictures, dataset.test.masks, len(dataset.classes))  # type: ignore[arg-type]
    own = range(distributed.rank(), len(dataset.test), distributed.world_size())
    pictures = WholePictures(masked, training.recipe.size, own)
    machine = training.machine

    def work() -> Tested:
        stride = training.recipe.stride
        with bar(len(own), "pictures", f"test of {dataset.name}") as progress:
            return count_pictures(
                training.logits,
                pictures,
                stride,
                machine.num_workers,
                machine.device,
                progress.update,
            )

    parts = distributed.gather_objects(distributed.run_on_all_ranks(work))
    indices = [index for part in parts for index in part.indices]
    order = np.argsort(indices)
    counts = np.concatenate([part.counts for part in parts])[order]
    return Tested(counts, sorted(indices), [name for part in parts for name in part.unreadable])


PROTOCOL = SegmentationProtocol("segmentation", SegmentationConfig, kinds=("segmentation",))
