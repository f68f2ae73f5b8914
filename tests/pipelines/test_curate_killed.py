"""A curation whose process is killed again and again ends with the bytes of an undisturbed one.

Run as a process: `python -m tests.pipelines.test_curate_killed URL NUM_WRITES` curates the run and
is killed by SIGKILL after so many files were written.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines import curate
from tests.pipelines.test_curate import config, distinct, write_raw
from tests.support.paths import ROOT
from transforms.core import storage

LONG = " and ".join(f"thing {i}" for i in range(20))


def made(url: str) -> dict[str, bytes]:
    """Everything that readers of the curated captions read; commit records hold times."""
    names = [name for name in storage.list_files(url) if not name.startswith(("commits/", "run."))]
    return {name: storage.read_bytes(storage.join(url, name)) for name in names}


@pytest.mark.slow
def test_a_curation_that_is_killed_again_and_again(tmp_path: Path) -> None:
    urls = [str(tmp_path / name) for name in ("calm", "killed")]
    for url in urls:
        write_raw(url, [*distinct(77), "caption number 5", LONG, f"{LONG}!"])
    calm, killed = urls
    curate.run(config(calm), [])
    command = [sys.executable, "-m", "tests.pipelines.test_curate_killed", killed, "8"]
    deaths = 0
    while (code := subprocess.run(command, cwd=ROOT, capture_output=True).returncode) != 0:
        assert code == -signal.SIGKILL
        deaths += 1
        assert deaths < 15, "every process goes further than the one before"
    assert deaths >= 3
    assert made(f"{killed}/captions") == made(f"{calm}/captions")


def main() -> None:
    url, allowed = sys.argv[1], int(sys.argv[2])
    written = 0

    def dying(write: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any) -> Any:
            nonlocal written
            if written == allowed:
                os.kill(os.getpid(), signal.SIGKILL)
            written += 1
            return write(*arguments)

        return counted

    for name in ("replace_bytes", "publish_bytes", "publish_file"):
        setattr(storage, name, dying(getattr(storage, name)))
    # Several tasks a step; the result does not depend on it.
    curate.CAPTIONS_PER_TASK = 40
    curate.run(config(url), [])


if __name__ == "__main__":
    main()
