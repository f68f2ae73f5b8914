"""CPU seconds from the start of a process to the end of its first step, in the middle of the data.

    python -m benchmarks.resume

Compares indices of 10 million samples (40,000 shards of 250, all links to one file) and of the
paper's 150 million with one of 250 samples. Each process reads the index, restores a checkpoint
from the middle of the second epoch, crops a batch there and makes a step. The encoder is the
demo's, so most of the time is for data and imports.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from transforms.core.index import INDEX_SCHEMA

SAMPLES_PER_SHARD = 250
CONFIG = Path(__file__).parents[1] / "trainer" / "configs" / "demo.yaml"

CHILD = """
import sys, torch
from trainer.config import TrainConfig
from trainer.data.loader import batches
from trainer.training.session import open_samples
from trainer.training.step import Training
from transforms.core.config import load_config

path, run, position, checkpoint = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
config = load_config(TrainConfig, path, [f"run={run}", "loader.num_workers=0"])
samples = open_samples(config)
training = Training(config, torch.device("cpu"))
if checkpoint == "write":
    training.step = position // config.captions_per_batch
    torch.save(training.state(), f"{run}/state.pt")
    sys.exit()
training.restore(torch.load(f"{run}/state.pt", weights_only=True))
stream = batches(
    samples, config.loader, first_step=training.step, last_step=training.step + 1,
    captions_per_batch=config.captions_per_batch,
)
training.update(next(stream))
print(training.values()["loss"])
"""


def write_run(run: Path, shard: Path, num_shards: int) -> None:
    """Write an images stage whose index lists the same shard file many times."""
    folder = run / "images"
    (folder / "shards").mkdir(parents=True)
    (folder / "shards" / "one.tar").symlink_to(shard.resolve())
    columns = {
        "shard": list(range(num_shards)),
        "path": ["shards/one.tar"] * num_shards,
        "sha256": [f"{number:064x}" for number in range(num_shards)],
        "num_bytes": [shard.stat().st_size] * num_shards,
        "num_samples": [SAMPLES_PER_SHARD] * num_shards,
        "num_failures": [0] * num_shards,
    }
    pq.write_table(pa.table(columns, schema=INDEX_SCHEMA), str(folder / "index.parquet"))


def write_shard(path: Path, images: Iterator[bytes]) -> None:
    """Write a shard of 250 samples, each with the next four of the images."""
    import webdataset

    with webdataset.TarWriter(str(path), mtime=0) as writer:
        for sample in range(SAMPLES_PER_SHARD):
            four = {f"{number}.jpg": next(images) for number in range(4)}
            writer.write({"__key__": f"{sample:016x}", **four, "txt": "a thing", "json": {}})


def noise() -> Iterator[bytes]:
    """Yield small JPEGs."""
    import io

    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    while True:
        buffer = io.BytesIO()
        pixels = generator.integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(buffer, "JPEG")
        yield buffer.getvalue()


def seconds(run: Path, position: int) -> float:
    command = [sys.executable, "-c", CHILD, str(CONFIG), str(run), str(position)]
    subprocess.run([*command, "write"], check=True, capture_output=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([*command, "read"], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        shard = Path(folder) / "one.tar"
        write_shard(shard, noise())
        for num_shards in (1, 40_000, 600_000):
            run = Path(folder) / str(num_shards)
            write_run(run, shard, num_shards)
            samples = num_shards * SAMPLES_PER_SHARD
            taken = seconds(run, samples * 3 // 2)
            print(
                f"{samples:>11,} samples: {taken:5.1f} s of CPU time to the first step", flush=True
            )


if __name__ == "__main__":
    main()
