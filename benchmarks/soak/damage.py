"""Damage to the files of a run, on local disk or on a GCS server."""

import random

from transforms.core import storage
from transforms.core.errors import MissingFileError

STAGES = ("captions-raw", "captions", "images")
KINDS = ("flipped bit", "cut off", "emptied", "deleted")
SCRATCH = "parts"
"""Folder of a curation's scratch files, below `captions`."""


def what(path: str) -> str | None:
    """Return what a file of a run is: "shard", "commit", ...; None if nothing must happen to it.

    `curation.json` is a report that nothing reads or checks.
    """
    _, _, inner = path.partition("/")
    folder, _, rest = inner.partition("/")
    if rest:
        kinds = {"shards": "shard", "commits": "commit", "failures": "dead letters"}
        return "scratch file" if folder == SCRATCH else kinds.get(folder)
    names = {"index.parquet": "index", "_SUCCESS": "_SUCCESS", "run.yaml": "run.yaml"}
    return {**names, "plan.json": "plan.json"}.get(inner)


def damage(run: str, generator: random.Random) -> str | None:
    """Damage a random file of a run.

    Returns:
        What was damaged, for instance "flipped bit: shard"; None if there is nothing.
    """
    files: dict[str, list[str]] = {}
    for stage in STAGES:
        for name in sorted(storage.list_files(f"{run}/{stage}")):
            kind = what(f"{stage}/{name}")
            if kind is not None:
                files.setdefault(kind, []).append(f"{run}/{stage}/{name}")
    if not files:
        return None
    target = generator.choice(sorted(files))
    url, kind = generator.choice(files[target]), generator.choice(KINDS)
    try:
        _damage(url, kind, generator)
    except MissingFileError:
        return None  # A worker has just deleted it.
    return f"{kind}: {target}"


def _damage(url: str, kind: str, generator: random.Random) -> None:
    content = bytearray(storage.read_bytes(url))
    if kind == "deleted":
        storage.delete(url)
    elif kind == "emptied" or not content:
        storage.replace_bytes(b"", url)
    elif kind == "cut off":
        storage.replace_bytes(bytes(content[: generator.randrange(len(content))]), url)
    else:
        content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        storage.replace_bytes(bytes(content), url)
