"""Producer of image shards: the captions of a shard -> image sets or failures (paper, section 3.2).

An image is identified by its caption and its number everywhere, so the order in which images are
painted cannot assign one to the wrong caption.

Batches mix captions. An image that is blank, not finite or flagged is painted again with its next
seed, after all others of the shard, so that batches are composed the same way each time. A caption
succeeds or fails with all its images. Images are checked at once, which takes microseconds, and
encoded by other threads: the engine never waits for the encoding.
"""

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from transforms.core.counters import Count, Tally
from transforms.core.records import Caption, Failure, ImageSet
from transforms.core.seeding import derive
from transforms.core.shards import StageFolder
from transforms.core.stages import Produced
from transforms.engines.image.base import ImageEngine, ImageEngineSpec, Pixels
from transforms.engines.watchdog import watchdog
from transforms.images.caption_reader import CaptionRows
from transforms.images.encoding import EncodingConfig, encode

log = logging.getLogger(__name__)

CODE_VERSION = 1
"""Version of the code that makes the bytes of this stage; part of the fingerprint."""


class ImageEngineError(RuntimeError):
    """The engine cannot paint anything; the message is one sentence."""


@dataclass(frozen=True)
class PaintPlan:
    """Settings of the producer.

    Attributes:
        captions_per_shard: Captions of an image shard; the last one may have fewer.
        images_per_caption: Images painted for each caption.
        generator_digest: Identity of the generator and its settings. Seeds depend on it, so that a
            caption gets the same images in any run, shard or order.
        settings: Stored with every image set: model, steps, guidance and so on.
        encoding: How images are stored.
        max_repaints: Times that an unusable image is painted again.
        min_contrast: An image is blank if no channel has a larger range of values.
        batch_timeout_s: Time limit for one batch, in seconds.
    """

    captions_per_shard: int
    images_per_caption: int
    generator_digest: str
    settings: dict[str, Any]
    encoding: EncodingConfig
    max_repaints: int
    min_contrast: int
    batch_timeout_s: float


@dataclass(frozen=True)
class _Task:
    """One image to paint: its caption, its number and the attempt."""

    caption: Caption
    number: int
    attempt: int
    seed: int

    @property
    def key(self) -> tuple[str, int]:
        return self.caption.caption_id, self.number


class ImagesProducer:
    """Paints image shards; shard j starts at row j * captions_per_shard of the captions."""

    def __init__(self, rows: CaptionRows, engine: ImageEngineSpec, plan: PaintPlan) -> None:
        self._rows = rows
        self._spec = engine
        self._plan = plan
        self._engine: ImageEngine | None = None
        self._encoders: ThreadPoolExecutor | None = None

    @property
    def captions_folder(self) -> StageFolder:
        """Folder of the captions that are painted."""
        return self._rows.rows.folder

    def setup(self) -> None:
        """Load the model."""
        self._engine = self._spec.open()
        self._encoders = ThreadPoolExecutor(self._plan.encoding.threads, "encode")

    def record_ids(self, shard: int) -> list[str]:
        """Return the caption ids of a shard."""
        return [caption.caption_id for caption in self.captions(shard)]

    def produce(self, shard: int, tally: Tally) -> Iterator[Produced]:
        """Paint a shard; each caption becomes an image set or a failure, in order.

        When this returns, everything is painted; the records still wait for the encoders.
        """
        assert self._engine is not None and self._encoders is not None, "setup comes first"
        captions = self.captions(shard)
        painting = _ShardPainting(self._engine, self._encoders, self._plan, tally)
        painting.run(captions)
        return (painting.record(caption) for caption in captions)

    def captions(self, shard: int) -> list[Caption]:
        """Return the captions of a shard, in order."""
        start = shard * self._plan.captions_per_shard
        return self._rows.read(start, start + self._plan.captions_per_shard)


class _ShardPainting:
    """The work on one shard: its usable images, and the captions that failed."""

    def __init__(
        self, engine: ImageEngine, encoders: Executor, plan: PaintPlan, tally: Tally
    ) -> None:
        self._engine = engine
        self._encoders = encoders
        self._plan = plan
        self._tally = tally
        self._images: dict[tuple[str, int], tuple[Future[bytes], int]] = {}
        self._failures: dict[str, Failure] = {}

    def run(self, captions: Sequence[Caption]) -> None:
        """Paint every image; paint unusable ones again."""
        tasks = [
            self._task(caption, number)
            for caption in captions
            for number in range(self._plan.images_per_caption)
        ]
        while tasks:
            tasks = self._tasks_again(self._paint_once(tasks))

    def record(self, caption: Caption) -> Produced:
        """Return the result of a caption; wait until its images are encoded."""
        failure = self._failures.get(caption.caption_id)
        if failure is not None:
            return failure
        numbers = range(self._plan.images_per_caption)
        painted = [self._images.pop((caption.caption_id, number)) for number in numbers]
        images = tuple(image.result() for image, _ in painted)
        return ImageSet(caption, images, tuple(seed for _, seed in painted), self._plan.settings)

    def _task(self, caption: Caption, number: int, attempt: int = 0) -> _Task:
        seed = derive(self._plan.generator_digest, caption.caption_id, number, attempt)
        return _Task(caption, number, attempt, seed)

    def _paint_once(self, tasks: Sequence[_Task]) -> list[tuple[_Task, Count]]:
        """Paint all tasks; return those whose image is unusable, each with the reason."""
        unusable = []
        start = 0
        while start < len(tasks):
            batch = tasks[start : start + self._engine.batch_size]
            start += len(batch)
            for task, pixels, reject in self._paint(batch):
                reason = reject or _flaw(pixels, self._plan.min_contrast)
                if reason is None:
                    encoded = self._encoders.submit(encode, pixels, self._plan.encoding)
                    self._images[task.key] = encoded, task.seed
                else:
                    unusable.append((task, reason))
        return unusable

    def _tasks_again(self, unusable: Sequence[tuple[_Task, Count]]) -> list[_Task]:
        """Return the next tasks; an image that has used up its seeds fails its caption."""
        for task, reason in unusable:
            self._tally.count(reason)
            if task.attempt == self._plan.max_repaints:
                detail = f"image {task.number} was unusable with {task.attempt + 1} seeds"
                self._fail(task.caption, reason, detail)
        tasks = [
            self._task(task.caption, task.number, task.attempt + 1)
            for task, _ in unusable
            if task.caption.caption_id not in self._failures
        ]
        if tasks:
            self._tally.count(Count.REPAINTED, len(tasks))
        return tasks

    def _paint(self, batch: Sequence[_Task]) -> list[tuple[_Task, Pixels, Count | None]]:
        """Paint a batch; a caption that makes the engine raise fails alone."""
        # Captions that failed in an earlier batch are left out.
        batch = [task for task in batch if task.caption.caption_id not in self._failures]
        try:
            return self._paint_together(batch) if batch else []
        except Exception as error:
            self._check_engine(error)
        painted = []
        for caption in {task.caption: None for task in batch}:
            own = [task for task in batch if task.caption == caption]
            try:
                painted += self._paint_together(own)
            except Exception as error:
                self._check_engine(error)
                self._tally.count(Count.ENGINE_ERROR)
                detail = f"{type(error).__name__}: {error}"
                self._fail(caption, Count.ENGINE_ERROR, detail)
        return painted

    def _paint_together(self, batch: Sequence[_Task]) -> list[tuple[_Task, Pixels, Count | None]]:
        texts, seeds = [task.caption.text for task in batch], [task.seed for task in batch]
        with watchdog(self._plan.batch_timeout_s, "painting a batch of images"):
            painted = self._engine.paint(texts, seeds)
        assert len(painted.pixels) == len(painted.rejects) == len(batch)
        return list(zip(batch, painted.pixels, painted.rejects, strict=True))

    def _check_engine(self, error: Exception) -> None:
        """Raise if the engine is broken: then it cannot even paint an empty caption."""
        log.warning("the image engine raised %s: %s", type(error).__name__, error)
        try:
            with watchdog(self._plan.batch_timeout_s, "painting an empty caption"):
                self._engine.paint([""], [0])
        except Exception as again:
            raise ImageEngineError(
                f"the image engine fails on every caption ({type(again).__name__}: {again})"
            ) from error

    def _fail(self, caption: Caption, reason: Count, detail: str) -> None:
        self._failures.setdefault(
            caption.caption_id, Failure(caption.caption_id, str(reason), detail)
        )


def _flaw(pixels: Pixels, min_contrast: int) -> Count | None:
    """Return why an image [H, W, 3] is unusable by its pixels, None if it is usable."""
    # Rows first, then columns: many times faster than both at once.
    contrast = pixels.max(axis=0).max(axis=0) - pixels.min(axis=0).min(axis=0)
    return Count.IMAGE_BLANK if contrast.max() < min_contrast else None
