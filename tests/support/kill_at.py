"""`python -m pipelines`, killed with SIGKILL the first time that it comes to a place.

    python -m tests.support.kill_at PLACE STAGE CONFIG [key=value ...]

A place is `before` or `after`, a colon, and what is written: run.yaml, shard, commit, index or
_SUCCESS; `nowhere` lets it live.
"""

import os
import sys

from pipelines.__main__ import main
from tests.support.fault_process import kill, strike
from transforms.core import storage

WRITTEN_BY = {
    "run.yaml": "publish_bytes",
    "shard": "publish_file",
    "commit": "publish_bytes",
    "index": "replace_bytes",
    "_SUCCESS": "replace_bytes",
}
NAMES = {"shard": "/shards/", "commit": "/commits/", "index": "index.parquet"}


def die_at(place: str) -> None:
    """Make the function of `storage` that writes there deadly."""
    moment, _, what = place.partition(":")
    strike(storage, WRITTEN_BY[what], kill, moment, 1, NAMES.get(what, what))


if __name__ == "__main__":
    if sys.argv[1] != "nowhere":
        die_at(sys.argv[1])
    code = main(sys.argv[2:])
    sys.stderr.flush()
    os._exit(code)
