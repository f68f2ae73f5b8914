"""Training of the heads of the linear probe on one data set, and their predictions.

All ranks take part: each decodes and embeds its share of a batch, and gradients are those of the
whole batch. The state is written from time to time, whole or not at all, and a start after a kill
continues from it, exactly.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer import distributed
from trainer.evaluate import states, views
from trainer.evaluate.datasets import LabelledSet, Split
from trainer.evaluate.features import Subject
from trainer.evaluate.linear_heads import Heads
from trainer.evaluate.protocols.base import Evaluation
from trainer.evaluate.views import Batch, Order
from trainer.losses import schedules
from transforms.core.config import fingerprint_fields
from transforms.core.errors import ConfigError
from transforms.core.progress import bar
from transforms.core.seeding import derive

if TYPE_CHECKING:
    from trainer.evaluate.protocols.linear import LinearConfig

BASE_BATCH = 256
"""Batch size that learning rates are for; they grow with the batch."""
RESIZE, CROP = 256, 224
"""Shorter side and centre crop of test pictures, for an encoder of 224 pixels."""
VERSION = 1
"""Version of the state. Raise it when the same settings train other heads."""


@dataclass
class Probe:
    """The training of the heads of one subject on one data set."""

    evaluation: Evaluation
    dataset: LabelledSet
    subject: Subject
    settings: "LinearConfig"
    step: int = 0
    """Number of finished steps."""
    seconds: float = 0.0
    """Seconds of all starts up to the last state."""
    unreadable: set[str] = field(default_factory=set)
    """Pictures that this rank, or any rank of an earlier start, could not decode."""

    def __post_init__(self) -> None:
        assert self.subject.input is not None and self.subject.encoder is not None
        self._size = self.subject.input.image_size
        seed = derive(self.evaluation.config.seed, "linear")
        settings, number = self.settings, len(self.dataset.train)
        self.order = Order(number, settings.batch_size, settings.epochs, seed)
        self.heads = Heads(
            self._embed(torch.zeros(1, 3, self._size, self._size, dtype=torch.uint8)).shape[1],
            len(self.dataset.classes),
            [rate * self.order.batch / BASE_BATCH for rate in settings.learning_rates],
            momentum=settings.momentum,
            seed=seed,
            device=next(self.subject.encoder.parameters()).device,
        )

    @property
    def url(self) -> str | None:
        """File of the state; None if the subject cannot be told from others."""
        if not self.subject.digest:
            return None
        config = self.evaluation.config
        settings = json.dumps(fingerprint_fields(self.settings), sort_keys=True)
        parts = [str(VERSION), self.subject.digest, self.dataset.identity, str(config.seed)]
        return states.url_of(config.run, "linear", self.dataset.name, "\n".join([*parts, settings]))

    def train(self) -> None:
        """Take all steps that are left; all ranks call this together."""
        self._continue()
        total, started, saved_at = self.order.num_steps, time.monotonic(), time.monotonic()
        before, batches = self.seconds, self._batches()
        title = f"linear on {self.dataset.name}, {self.subject.kind}"
        with bar(total, "steps", title, initial=self.step) as progress:
            while self.step < total:
                features, labels = self._next(batches)
                factor = schedules.learning_rate(self.step, total, warmup=0, peak=1.0)
                self.heads.update(features, labels, factor)
                self.step += 1
                progress.update()
                late = time.monotonic() - saved_at >= self.settings.save_every_s
                if distributed.any_rank(late or self.step == total)[0]:
                    self.seconds = before + time.monotonic() - started
                    self._save()
                    saved_at = time.monotonic()

    def predict(self, name: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return what each head predicts for the pictures of a split, and their labels.

        All ranks call this together. Pictures that cannot be decoded are left out.

        Returns:
            Classes [H, N] and labels [N], the same on every rank.

        Raises:
            ConfigError: No picture can be decoded.
        """
        split = self.dataset.splits[name]
        mine = distributed.run_on_all_ranks(lambda: self._predict(name, split))
        indices, classes = (
            np.concatenate(parts, axis=-1)
            for parts in zip(*distributed.gather_objects(mine), strict=True)
        )
        if not len(indices):
            raise ConfigError(
                f"no picture of {name} in data set {self.dataset.name!r} can be decoded"
            )
        order = np.argsort(indices)
        return classes[:, order].astype(np.int64), split.labels[indices[order]]

    def _predict(self, name: str, split: Split) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Return the indices, [n], and classes, [H, n], of this rank's share of a split."""
        config = self.evaluation.config
        own = range(distributed.rank(), len(split), distributed.world_size())
        keys = [[(0, i) for i in some] for some in views.chunks(own, config.batch_size)]
        view = views.Centre(self._size, round(self._size * RESIZE / CROP))
        indices: list[int] = []
        classes = [np.empty((len(self.heads.heads), 0), np.int32)]
        for batch in views.batches(split.pictures, view, keys, **self._reading()):
            self.unreadable.update(f"{name}: {split.name(i)}" for i in batch.unreadable)
            if batch.indices:
                found = self.heads.predict(self._embed(batch.images))
                classes.append(found.cpu().numpy().astype(np.int32))
                indices += batch.indices
        return np.array(indices, np.int64), np.concatenate(classes, axis=1)

    def _embed(self, images: Tensor) -> Tensor:
        assert self.subject.embed is not None
        features = self.subject.embed(images)
        if not features.isfinite().all():
            raise ConfigError("the features of some pictures are not finite: the encoder is broken")
        return features

    def _reading(self) -> dict[str, Any]:
        on_gpu = self.heads.device.type == "cuda"
        return {"num_workers": self.evaluation.config.num_workers, "pin_memory": on_gpu}

    def _own(self, step: int) -> list[tuple[int, int]]:
        """Return this rank's pictures of a step."""
        return self.order.keys(step)[distributed.rank() :: distributed.world_size()]

    def _batches(self) -> Iterator[Batch]:
        """Return this rank's pictures of all steps that are left, a forward pass at a time."""
        size = self.evaluation.config.batch_size
        keys = (
            some
            for step in range(self.step, self.order.num_steps)
            for some in views.chunks(self._own(step), size)
        )
        view = views.RandomCrop(self._size, self.order.seed)
        return views.batches(self.dataset.train.pictures, view, keys, **self._reading())

    def _next(self, batches: Iterator[Batch]) -> tuple[Tensor, Tensor]:
        """Return features [B, D] and labels [B] of this rank's pictures of the next step."""
        split, heads, indices = self.dataset.train, self.heads, list[int]()
        features = [torch.empty(0, heads.width, device=heads.device)]
        left = len(self._own(self.step))
        while left > 0:
            batch = next(batches)
            left -= len(batch.indices) + len(batch.unreadable)
            self.unreadable.update(f"train: {split.name(i)}" for i in batch.unreadable)
            if batch.indices:
                features.append(self._embed(batch.images))
                indices += batch.indices
        labels = torch.from_numpy(split.labels[indices]).to(heads.device)
        return torch.cat(features), labels

    def _save(self) -> None:
        """Write the state; all ranks call this together."""
        self.unreadable = self.all_unreadable()
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "unreadable": sorted(self.unreadable),
            "heads": {name: tensor.cpu() for name, tensor in self.heads.state().items()},
        }
        states.save(state, self.url)

    def _continue(self) -> None:
        """Restore the state that is there, if any; all ranks call this together."""
        state = states.load(self.url, "linear probe")
        if state is not None:
            self.step, self.seconds = state["step"], state["seconds"]
            self.unreadable = set(state["unreadable"])
            self.heads.restore(state["heads"])

    def all_unreadable(self) -> set[str]:
        """Return the pictures that any rank could not decode; all ranks call this together."""
        return set().union(*distributed.gather_objects(self.unreadable))
