import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from transforms.core import scratch
from transforms.core.scratch import scratch_folder


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    scratch._remove_abandoned.cache_clear()


def test_a_folder_goes_when_its_work_ends(tmp_path: Path) -> None:
    with scratch_folder() as folder:
        (Path(folder) / "shard.tar").write_bytes(b"x")
        assert Path(folder).parent == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_a_folder_goes_when_its_work_fails(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), scratch_folder():
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed_and_a_living_ones_is_not(tmp_path: Path) -> None:
    code = (
        "import os, sys, tempfile; tempfile.tempdir = sys.argv[1]\n"
        "from transforms.core.scratch import scratch_folder\n"
        "with scratch_folder() as folder:\n"
        "    print(folder, flush=True)\n"
        "    sys.stdin.read() if sys.argv[2] == 'live' else os.kill(os.getpid(), 9)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    living = subprocess.Popen(
        [*command, "live"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert living.stdout is not None
    living_folder = living.stdout.readline().strip()
    killed = subprocess.run([*command, "die"], stdout=subprocess.PIPE, text=True)
    killed_folder = killed.stdout.strip()
    assert Path(killed_folder).exists()
    with scratch_folder():
        assert not Path(killed_folder).exists()
        assert Path(living_folder).exists()
    living.communicate("")
    assert list(tmp_path.iterdir()) == []
