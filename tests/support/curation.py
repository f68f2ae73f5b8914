"""Raw captions and a config for tests of the curate stage."""

from pipelines.captions import DATA, CaptionsConfig
from tests.support.captions import captions_of
from transforms.core import storage
from transforms.core.commit import ShardBuild
from transforms.core.counters import Tally
from transforms.core.fingerprint import Fingerprint, claim
from transforms.core.index import write_index
from transforms.core.shards import committed_shards, read_commit
from transforms.core.stages import StageOutput, stage_folder, write_plan

PER_SHARD = 20
FIELDS = {"concept": "thing", "source": "test", "template": "c-background", "background": "attic"}
"""Every caption that `write_raw` writes has these."""
LONG = " and ".join(f"thing {i}" for i in range(20))


RAW = Fingerprint({"kind": "raw"})
"""Fingerprint of the raw captions."""


def config(
    url: str, num_captions: int = 60, oversampling: float = 1.0, **changes: object
) -> CaptionsConfig:
    """Return the config of a run at `url`; `changes` are other keys."""
    settings = {
        "run": url,
        "concepts": f"{DATA}/concepts/demo.yaml",
        "num_captions": num_captions,
        "captions_per_shard": PER_SHARD,
        "captions": {"oversampling": oversampling},
        "model": "not read here",
    }
    return CaptionsConfig.model_validate({**settings, **changes})


def write_raw(url: str, texts: list[str]) -> None:
    """Complete a captions stage that holds these texts; shards that are there stay."""
    folder = stage_folder(url, "captions-raw")
    for start in range(0, len(texts), PER_SHARD):
        shard = start // PER_SHARD
        if storage.exists(folder.commit_url(shard)):
            continue
        part = captions_of(texts[start : start + PER_SHARD], start, **FIELDS)
        with ShardBuild(folder, shard) as build:
            build.write(iter(part))
            build.commit([str(c.ordinal) for c in part], RAW.digest, Tally())
    records = [read_commit(folder, shard) for shard in sorted(committed_shards(folder))]
    claim(folder.run_yaml_url, RAW, {})
    write_plan(
        StageOutput(
            folder=folder,
            fingerprint=RAW,
            config={},
            num_shards=len(records),
            num_records=len(texts),
            metadata={},
        )
    )
    write_index(folder, records, {"stage": "captions", "fingerprint": RAW.digest})


def distinct(number: int) -> list[str]:
    """Return so many different texts, too short to be near-duplicates."""
    return [f"caption number {i}" for i in range(number)]
