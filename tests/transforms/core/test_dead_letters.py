from pathlib import Path

import pytest

from tests.support.captions import caption
from transforms.core import storage
from transforms.core.commit import ShardBuild
from transforms.core.counters import Count, Tally
from transforms.core.dead_letters import dead_letters
from transforms.core.errors import DamagedFileError
from transforms.core.records import Failure
from transforms.core.shards import StageFolder
from transforms.core.stages import STAGES


def test_each_shard_with_dead_letters_in_order(tmp_path: Path) -> None:
    folder = StageFolder(str(tmp_path), STAGES["captions"])
    assert list(dead_letters(folder)) == []
    for shard in (1002, 7, 3):
        lost = [str(10 * shard + n) for n in range(2)] if shard != 7 else []
        with ShardBuild(folder, shard) as build:
            build.write([caption(shard), *(Failure(i, str(Count.DROP_EMPTY), "") for i in lost)])
            build.commit([str(shard), *lost], "print", Tally())
    assert list(dead_letters(folder)) == [(3, {"30", "31"}), (1002, {"10020", "10021"})]
    storage.replace_bytes(b"PAR1", folder.failures_url(3))
    with pytest.raises(DamagedFileError, match=r"captions-000003\.parquet is damaged"):
        list(dead_letters(folder))
