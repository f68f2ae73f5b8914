"""Curated captions as the curate stage leaves them, for tests of what comes after it."""

from collections.abc import Sequence

from transforms.core import storage
from transforms.core.commit import ShardBuild
from transforms.core.counters import Tally
from transforms.core.records import Caption
from transforms.core.seeding import caption_id
from transforms.core.shards import StageFolder, write_index


def make_captions(number: int, first: int = 0) -> list[Caption]:
    """Different captions, numbered from `first`."""
    return [
        Caption(caption_id(text), text, ordinal, "cat", "pets", "c", None, None)
        for ordinal in range(first, first + number)
        for text in [f"a cat that sits on chair number {ordinal}"]
    ]


def write_captions(url: str, shards: Sequence[Sequence[Caption]]) -> None:
    """Commit caption shards, the index and `_SUCCESS` to a stage folder."""
    folder = StageFolder(url, "captions", ".parquet")
    records = []
    for number, captions in enumerate(shards):
        with ShardBuild(folder, number) as build:
            build.write(captions)
            owed = [str(caption.ordinal) for caption in captions]
            records.append(build.commit(owed, "fingerprint", Tally()))
    storage.replace_bytes(b"{}", folder.run_yaml_url)
    write_index(folder, records, {"stage": "captions"})
