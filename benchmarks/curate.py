"""Time and peak memory of curation as the corpus grows, on synthetic captions.

    python -m benchmarks.curate [--captions 500000 5000000] [--folder FOLDER]

Each size is a separate run: captions of 8 to 20 words from a vocabulary of 20,000. A tenth are
equal to other captions and a twentieth differ from another one in the last word. `python -m
pipelines curate` then keeps four fifths of them, in a new process, with the default settings.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import yaml

from transforms.core import storage
from transforms.core.commit import ShardBuild
from transforms.core.counters import Tally
from transforms.core.index import write_index
from transforms.core.records import CAPTION_SCHEMA
from transforms.core.seeding import caption_id
from transforms.core.shards import CommitRecord, StageFolder
from transforms.core.stages import STAGES

PER_SHARD = 10_000
EQUAL, NEAR = 0.1, 0.05
WORDS = np.array([f"w{number:x}" for number in range(20_000)])


def texts(draw: np.random.Generator, others: list[str]) -> list[str]:
    """Return the captions of a shard; some repeat or alter captions of another shard."""
    lengths = draw.integers(8, 21, PER_SHARD)
    # A few words are frequent and most are rare, as in natural language.
    words = WORDS[(len(WORDS) * draw.random(lengths.sum()) ** 3).astype(int)].tolist()
    ends = np.cumsum(lengths).tolist()
    new = [" ".join(words[e - n : e]) for e, n in zip(ends, lengths.tolist(), strict=True)]
    if others:
        equal, near = int(EQUAL * PER_SHARD), int(NEAR * PER_SHARD)
        new[:equal] = others[-equal:]
        sources = others[-equal - near : -equal]
        new[equal : equal + near] = [text.rpartition(" ")[0] + " altered" for text in sources]
    return new


def write_shard(folder: StageFolder, shard: int, captions: list[str]) -> CommitRecord:
    ordinals = range(shard * PER_SHARD, (shard + 1) * PER_SHARD)
    columns: dict[str, list[object]] = {
        "caption_id": [caption_id(text) for text in captions],
        "text": list(captions),
        "ordinal": list(ordinals),
        "concept": [text.partition(" ")[0] for text in captions],
        "source": ["synthetic"] * PER_SHARD,
        "template": ["c-background"] * PER_SHARD,
        "background": ["some place"] * PER_SHARD,
        "relation": [None] * PER_SHARD,
    }
    with ShardBuild(folder, shard) as build:
        build.write(pa.table(columns, schema=CAPTION_SCHEMA))
        return build.commit([str(ordinal) for ordinal in ordinals], "synthetic", Tally())


def make_run(run: str, number: int) -> None:
    folder = StageFolder(storage.join(run, "captions-raw"), STAGES["captions"])
    draw, others, records = np.random.default_rng(0), list[str](), []
    for shard in range(number // PER_SHARD):
        captions = texts(draw, others)
        records.append(write_shard(folder, shard, captions))
        others = captions[int(EQUAL * PER_SHARD) :]
    write_index(folder, records, {"stage": "captions"})


def curate(run: str, number: int) -> tuple[float, float]:
    """Run curation; return the seconds and the peak memory in GB."""
    Path(run, "concepts.txt").write_text("something\n")
    config = {
        "run": run,
        "concepts": f"{run}/concepts.txt",
        "num_captions": number * 4 // 5 // PER_SHARD * PER_SHARD,
        "captions": {"oversampling": 1.25},
        "captions_per_shard": PER_SHARD,
        "model": "none",
    }
    Path(run, "config.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "pipelines", "curate", f"{run}/config.yaml"]
    started = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    if status:
        raise SystemExit(f"curation failed with status {status}")
    print(f"  {usage.ru_utime + usage.ru_stime:.0f} s of processor time")
    return seconds, usage.ru_maxrss * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--captions", type=int, nargs="+", default=[500_000, 5_000_000])
    parser.add_argument("--folder", help="folder for the runs; default: a temporary folder")
    arguments = parser.parse_args()
    measured = []
    for number in arguments.captions:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as run:
            make_run(run, number)
            seconds, memory = curate(run, number)
            report = json.loads(storage.read_bytes(f"{run}/captions/curation.json"))
        removed = [report["num_exact_duplicates"], report["num_near_duplicates"]]
        print(
            f"{number:>10,} captions: {seconds:6.1f} s, {memory:.2f} GB, "
            f"{removed[0]:,} equal and {removed[1]:,} near duplicates"
        )
        measured.append((seconds, memory))
    for (first, first_memory), (last, last_memory) in itertools.pairwise(measured):
        print(f"growth: {last / first:.1f} x time, {last_memory / first_memory:.1f} x memory")


if __name__ == "__main__":
    main()
