"""`python -m pipelines`, killed with SIGKILL when it first writes a certain file.

    python -m tests.support.kill_at PLACE STAGE CONFIG [key=value ...]

PLACE is `before` or `after`, a colon, and what is written: run.yaml, shard, commit, index or
_SUCCESS. With `nowhere` the process is not killed.
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
    """Kill this process in the function of `storage` that writes there."""
    moment, _, what = place.partition(":")
    strike(storage, WRITTEN_BY[what], kill, moment, 1, NAMES.get(what, what))


if __name__ == "__main__":
    if sys.argv[1] != "nowhere":
        die_at(sys.argv[1])
    code = main(sys.argv[2:])
    sys.stderr.flush()
    os._exit(code)
