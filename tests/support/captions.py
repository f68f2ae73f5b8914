"""Captions, and stage folders that hold them, for tests."""

from collections.abc import Iterable, Sequence
from typing import Any

from transforms.core import storage
from transforms.core.commit import ShardBuild
from transforms.core.counters import Tally
from transforms.core.index import write_index
from transforms.core.records import Caption
from transforms.core.seeding import caption_id
from transforms.core.shards import StageFolder
from transforms.core.stages import STAGES


def caption(ordinal: int = 0, text: str | None = None, **fields: Any) -> Caption:
    """Return a caption: by default one whose text names its ordinal.

    Args:
        ordinal: Number of its prompt.
        text: Its text.
        fields: Other fields of `Caption`; by default a plain caption of the concept "cat".
    """
    if text is None:
        text = f"a cat that sits on chair number {ordinal}"
    plain = {
        "caption_id": caption_id(text, fields.get("occurrence", 0)),
        "concept": "cat",
        "source": "pets",
        "template": "c",
        "background": None,
        "relation": None,
    }
    return Caption(text=text, ordinal=ordinal, **plain | fields)


def captions_of(texts: Iterable[str], first: int = 0, **fields: Any) -> list[Caption]:
    """Return captions with these texts, numbered from `first`; `fields` as in `caption`."""
    return [caption(ordinal, text, **fields) for ordinal, text in enumerate(texts, first)]


def make_captions(number: int, first: int = 0) -> list[Caption]:
    """Return different captions, numbered from `first`."""
    return [caption(ordinal) for ordinal in range(first, first + number)]


def write_captions(url: str, shards: Sequence[Sequence[Caption]]) -> StageFolder:
    """Commit caption shards, the index and `_SUCCESS` to a stage folder; return the folder."""
    folder = StageFolder(url, STAGES["captions"])
    records = []
    for number, captions in enumerate(shards):
        with ShardBuild(folder, number) as build:
            build.write(captions)
            expected_ids = [str(caption.ordinal) for caption in captions]
            records.append(build.commit(expected_ids, "fingerprint", Tally()))
    storage.replace_bytes(b"{}", folder.run_yaml_url)
    write_index(folder, records, {"stage": "captions"})
    return folder
