"""What a report says about the captions and images themselves, by a few shards spread over a stage.

At most `SHARDS_READ` shards of a stage are read, whatever its size. What covers all captions comes
from `curation.json`, once the curation has written it.
"""

import io
import json
import random
import tarfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.report.stages import parsed, spread
from transforms.concepts.balance import GROUP_COLUMNS, balance
from transforms.core import storage
from transforms.core.errors import ConfigError, MissingFileError, StorageError
from transforms.core.shards import CommitRecord
from transforms.core.stages import stage_folder

SHARDS_READ = 8
IMAGES_MEASURED = 512
MAX_WORDS = 60
"""Captions of so many words or more share the last column of the histogram."""


@dataclass(frozen=True)
class CaptionFacts:
    """The captions of a run: the curated ones, or the raw ones as long as there are no others."""

    stage: str
    num_read: int
    """Captions that lengths and examples come from."""
    lengths: Sequence[int]
    """Captions by number of words, from 0 to `MAX_WORDS`."""
    examples: Sequence[Mapping[str, str]]
    """Random captions: text, concept, source, template."""
    balance: Mapping[str, Any]
    """As `transforms.concepts.balance` gives it."""
    balance_is_complete: bool
    """Over all captions, and not only over those read."""
    curation: Mapping[str, Any] | None
    """What was removed: the content of `curation.json`."""


@dataclass(frozen=True)
class Example:
    """A caption with its images."""

    text: str
    concept: str
    images: tuple[bytes, ...]


@dataclass(frozen=True)
class Spread:
    """How a value is distributed over images."""

    low: float
    """5 % are below."""
    median: float
    high: float
    """5 % are above."""


@dataclass(frozen=True)
class ImageFacts:
    """The images of a run, by a sample."""

    num_measured: int
    size: str
    """Width x height of the first one."""
    brightness: Spread
    """Mean of all values, 0 to 255."""
    contrast: Spread
    """Standard deviation of all values, 0 to 255."""
    num_bytes: Spread


def caption_facts(
    run: str,
    records: Mapping[str, Sequence[CommitRecord]],
    settings: Mapping[str, Any],
    number: int,
) -> CaptionFacts | None:
    """Read some captions of a run.

    Args:
        run: Its folder.
        records: Commit records by stage.
        settings: The `run.yaml` of the captions stage, which says what was planned.
        number: Examples wanted.
    """
    stage = next((s for s in ("captions", "captions-raw") if records.get(s)), None)
    if stage is None:
        return None
    rows = pa.concat_tables(_captions(run, stage, r) for r in spread(records[stage], SHARDS_READ))
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
        balance=curation["balance"] if curation else balance(groups, _plan(settings)),
        balance_is_complete=curation is not None,
        curation=curation,
    )


def image_facts(
    run: str, records: Sequence[CommitRecord], number: int
) -> tuple[list[Example], ImageFacts | None]:
    """Captions with their images, spread evenly over the shards, and what images are like."""
    holding = [record for record in records if record.num_samples]
    chosen = spread(holding, SHARDS_READ)
    examples: list[Example] = []
    images: list[bytes] = []
    for place, record in enumerate(chosen):
        path = storage.join(run, "images", record.path)
        samples = parsed(path, storage.read_bytes(path), _tar_samples)
        wanted = number * (place + 1) // len(chosen) - number * place // len(chosen)
        examples += [_example(sample) for sample in spread(samples, wanted)]
        every = [image for sample in samples for image in _images(sample)]
        images += spread(every, IMAGES_MEASURED // len(chosen))
    return examples, _measured(images) if images else None


def _captions(run: str, stage: str, record: CommitRecord) -> pa.Table:
    url = storage.join(stage_folder(run, stage).url, record.path)
    columns = ["text", *GROUP_COLUMNS]
    return parsed(
        url, storage.read_bytes(url), lambda c: pq.read_table(io.BytesIO(c), columns=columns)
    )


def _curation(run: str) -> dict[str, Any] | None:
    url = storage.join(run, "captions", "curation.json")
    try:
        content = storage.read_bytes(url)
    except MissingFileError:
        return None
    return parsed(url, content, lambda c: {**json.loads(c), "balance": json.loads(c)["balance"]})


def _plan(settings: Mapping[str, Any]) -> dict[tuple[str, str, str], float]:
    """The planned shares, if the lists that the captions stage was started with are still there."""
    from pipelines.captions import CaptionsConfig, prompt_source

    try:
        return prompt_source(CaptionsConfig.model_validate(settings["config"])).plan()
    except (ConfigError, KeyError, ValueError, StorageError):
        return {}


def _tar_samples(content: bytes) -> list[dict[str, bytes]]:
    """The samples of a shard: extension -> content."""
    samples: dict[str, dict[str, bytes]] = {}
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for member in archive:
            key, _, extension = member.name.partition(".")
            file = archive.extractfile(member)
            if file is not None:
                samples.setdefault(key, {})[extension] = file.read()
    return list(samples.values())


def _images(sample: Mapping[str, bytes]) -> list[bytes]:
    return [sample[name] for name in sorted(sample) if name[0].isdigit()]


def _example(sample: Mapping[str, bytes]) -> Example:
    concept = json.loads(sample["json"])["concept"]
    return Example(sample["txt"].decode(), concept, tuple(_images(sample)))


def _measured(images: Sequence[bytes]) -> ImageFacts:
    import numpy as np
    from PIL import Image

    values = [np.asarray(Image.open(io.BytesIO(image)).convert("RGB")) for image in images]
    height, width, _ = values[0].shape

    def over(numbers: Sequence[float]) -> Spread:
        return Spread(*(float(np.percentile(numbers, part)) for part in (5, 50, 95)))

    return ImageFacts(
        num_measured=len(images),
        size=f"{width} x {height}",
        brightness=over([float(pixels.mean()) for pixels in values]),
        contrast=over([float(pixels.std()) for pixels in values]),
        num_bytes=over([len(image) for image in images]),
    )
