"""Statistics and examples of the captions and images of a run, from a sample of their shards.

At most `SHARDS_READ` shards of a stage are read, evenly spaced. Numbers about all captions come
from `curation.json`, which exists once curation is complete.
"""

import io
import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipelines.report.stages import spread
from transforms.concepts.balance import GROUP_COLUMNS, balance
from transforms.core import storage
from transforms.core.config import stored_config
from transforms.core.errors import ConfigError, MissingFileError, StorageError, reading
from transforms.core.shard_reader import CommittedShard
from transforms.core.shards import CommitRecord
from transforms.core.stages import stage_folder
from transforms.core.tar_shards import read_samples

SHARDS_READ = 8
IMAGES_MEASURED = 512
MAX_WORDS = 60
"""Captions of at least this many words share the last column of the histogram."""


@dataclass(frozen=True)
class CaptionFacts:
    """Statistics and examples of the curated captions, or of the raw ones before curation."""

    stage: str
    num_read: int
    """Number of captions that `lengths` and `examples` come from."""
    lengths: Sequence[int]
    """Number of captions by number of words, from 0 to `MAX_WORDS`."""
    examples: Sequence[Mapping[str, str]]
    """Random captions, with the keys text, concept, source and template."""
    balance: Mapping[str, Any]
    """Result of `transforms.concepts.balance.balance`."""
    balance_is_complete: bool
    """True if `balance` covers all captions, False if only those that were read."""
    curation: Mapping[str, Any] | None
    """Content of `curation.json`: what curation removed."""


@dataclass(frozen=True)
class Example:
    """A caption with its images."""

    text: str
    concept: str
    images: tuple[bytes, ...]


@dataclass(frozen=True)
class Spread:
    """Distribution of a value over images."""

    low: float
    """5th percentile."""
    median: float
    high: float
    """95th percentile."""


@dataclass(frozen=True)
class ImageFacts:
    """Statistics of a sample of the images of a run."""

    num_measured: int
    size: str
    """Width x height of the first image, in pixels."""
    brightness: Spread
    """Mean over all pixels and channels, 0 to 255."""
    contrast: Spread
    """Standard deviation over all pixels and channels, 0 to 255."""
    num_bytes: Spread


def caption_facts(
    run: str,
    records: Mapping[str, Sequence[CommitRecord]],
    settings: Mapping[str, Any],
    number: int,
) -> CaptionFacts | None:
    """Return statistics and examples of the captions; None if there are no captions.

    Args:
        run: Folder or URL of the run.
        records: Commit records by stage.
        settings: Content of the `run.yaml` of the captions stage, which has the planned shares.
        number: Number of examples.
    """
    stage = next((s for s in ("captions", "captions-raw") if records.get(s)), None)
    if stage is None:
        return None
    shards = [_shard(run, stage, record) for record in spread(records[stage], SHARDS_READ)]
    rows = pa.concat_tables(shard.read_table(["text", *GROUP_COLUMNS]) for shard in shards)
    lengths = Counter(min(len(text.split()), MAX_WORDS) for text in rows["text"].to_pylist())
    chosen = sorted(random.Random(0).sample(range(len(rows)), min(number, len(rows))))
    curation = _curation(run)
    counted = rows.group_by(GROUP_COLUMNS).aggregate([([], "count_all")]).to_pylist()
    groups = [((c["source"], c["concept"], c["template"]), c["count_all"]) for c in counted]
    return CaptionFacts(
        stage=stage,
        num_read=len(rows),
        lengths=[lengths[words] for words in range(MAX_WORDS + 1)],
        examples=rows.take(pa.array(chosen, pa.int64()))
        .select(["text", *GROUP_COLUMNS])
        .to_pylist(),
        balance=curation["balance"] if curation else balance(groups, _planned_shares(settings)),
        balance_is_complete=curation is not None,
        curation=curation,
    )


def image_facts(
    run: str, records: Sequence[CommitRecord], number: int
) -> tuple[list[Example], ImageFacts | None]:
    """Return captions with their images, spread evenly over the shards, and image statistics.

    Args:
        run: Folder or URL of the run.
        records: Commit records of the images stage.
        number: Number of examples.
    """
    holding = [record for record in records if record.num_samples]
    chosen = spread(holding, SHARDS_READ)
    examples: list[Example] = []
    images: list[bytes] = []
    for place, record in enumerate(chosen):
        shard = _shard(run, "images", record)
        content = shard.read()
        wanted = number * (place + 1) // len(chosen) - number * place // len(chosen)
        with reading(f"shard {shard.url}"):
            samples = list(read_samples(content).values())
            examples += [_example(sample) for sample in spread(samples, wanted)]
        every = [image for sample in samples for image in _images(sample)]
        images += spread(every, IMAGES_MEASURED // len(chosen))
    return examples, _measured(images) if images else None


def _shard(run: str, stage: str, record: CommitRecord) -> CommittedShard:
    folder = stage_folder(run, stage)
    url = storage.join(folder.url, record.path)
    return CommittedShard(url, record.sha256, record.num_samples, folder)


def _curation(run: str) -> Mapping[str, Any] | None:
    url = storage.join(run, "captions", "curation.json")
    try:
        content = storage.read_bytes(url)
    except MissingFileError:
        return None
    with reading(url, "delete it, then run this command again, which does without it"):
        curation: Mapping[str, Any] = json.loads(content)
        _ = dict(curation["balance"])  # Fails here if the file holds something else.
    return curation


def _planned_shares(settings: Mapping[str, Any]) -> dict[tuple[str, str, str], float]:
    """Return the planned share of each group; nothing if the stage's lists no longer exist."""
    from pipelines.captions import CaptionsConfig, prompt_source

    try:
        config = stored_config(CaptionsConfig, settings["config"], "run.yaml")
        return prompt_source(config).plan()
    except (ConfigError, KeyError, ValueError, StorageError):
        return {}


def _images(sample: Mapping[str, bytes]) -> list[bytes]:
    names = [name for name in sample if name[0].isdigit()]
    return [sample[name] for name in sorted(names, key=lambda n: int(n.partition(".")[0]))]


def _example(sample: Mapping[str, bytes]) -> Example:
    concept = json.loads(sample["json"])["concept"]
    return Example(sample["txt"].decode(), concept, tuple(_images(sample)))


def _measured(images: Sequence[bytes]) -> ImageFacts:
    import numpy as np
    from PIL import Image

    pixels = [np.asarray(Image.open(io.BytesIO(image)).convert("RGB")) for image in images]
    height, width, _ = pixels[0].shape

    def spread_of(values: Sequence[float]) -> Spread:
        return Spread(*(float(np.percentile(values, part)) for part in (5, 50, 95)))

    return ImageFacts(
        num_measured=len(images),
        size=f"{width} x {height}",
        brightness=spread_of([float(image.mean()) for image in pixels]),
        contrast=spread_of([float(image.std()) for image in pixels]),
        num_bytes=spread_of([len(image) for image in images]),
    )
