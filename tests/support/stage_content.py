"""What a stage folder holds, however its stage ran."""

import hashlib
from pathlib import Path

import pyarrow.parquet as pq

from transforms.core import storage
from transforms.core.shards import read_commit
from transforms.core.stages import stage_folder


def content(url: str) -> dict[str, str]:
    """Return file name -> checksum of the files of a stage that is the same after any run.

    Commit records hold times, and `run.yaml` versions; those of retries, too.
    """
    names = (name for name in storage.list_files(url) if "commits" not in name.split("/"))
    return {
        name: hashlib.sha256(storage.read_bytes(storage.join(url, name))).hexdigest()
        for name in names
        if name.rpartition("/")[2] != "run.yaml"
    }


def check_committed(url: str) -> None:
    """Check that all files of a local captions stage are whole, and shards as committed."""
    run, _, name = url.rpartition("/")
    folder = stage_folder(run, name)
    for path in Path(url).rglob("*.parquet"):
        pq.read_table(path)
    for path in Path(url).glob("commits/*/*.json"):
        record = read_commit(folder, int(path.stem.rpartition("-")[2]))
        data = (Path(url) / record.path).read_bytes()
        assert hashlib.sha256(data).hexdigest() == record.sha256


def caption_ordinals(url: str) -> list[int]:
    """Return the ordinals of all captions and dead letters of a local captions stage, sorted."""
    captions = [pq.read_table(p)["ordinal"].to_pylist() for p in Path(url).glob("shards/*/*")]
    failures = [pq.read_table(p)["record_id"].to_pylist() for p in Path(url).glob("failures/*/*")]
    return sorted(int(ordinal) for ordinals in captions + failures for ordinal in ordinals)
