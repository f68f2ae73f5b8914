"""`python -m pipelines`, killed with SIGKILL the first time that it comes to a place.

    python -m tests.pipelines.dying PLACE STAGE CONFIG [key=value ...]

A place is `before` or `after`, a colon, and what is written: run.yaml, shard, commit, index or
_SUCCESS; `nowhere` lets it live.
"""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from pipelines.__main__ import main
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
    write: Callable[..., Any] = getattr(storage, WRITTEN_BY[what])

    def deadly(source: Any, url: str) -> Any:
        is_there = NAMES.get(what, what) in url
        if is_there and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = write(source, url)
        if is_there:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(storage, WRITTEN_BY[what], deadly)


if __name__ == "__main__":
    if sys.argv[1] != "nowhere":
        die_at(sys.argv[1])
    code = main(sys.argv[2:])
    sys.stderr.flush()
    os._exit(code)
