import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.captions import make_captions, write_captions
from transforms.core import storage
from transforms.core.errors import DamagedFileError, MissingFileError
from transforms.core.parquet_shards import CAPTION_SHARDS
from transforms.core.stages import STAGES
from transforms.images.caption_reader import CaptionRows


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=5),
    group=st.integers(1, 4),
    data=st.data(),
)
def test_any_span_of_rows_is_that_slice_of_all_captions(
    lengths: list[int], group: int, data: st.DataObject
) -> None:
    captions = make_captions(sum(lengths))
    ends = [sum(lengths[: i + 1]) for i in range(len(lengths))]
    shards = [captions[end - n : end] for end, n in zip(ends, lengths, strict=True)]
    url = f"memory://rows-{'-'.join(map(str, lengths))}-{group}/captions"
    with pytest.MonkeyPatch.context() as patch:
        format = dataclasses.replace(CAPTION_SHARDS, row_group_size=group)
        kind = dataclasses.replace(STAGES["captions"], format=format)
        patch.setitem(STAGES, "captions", kind)
        write_captions(url, shards)
    rows = CaptionRows.open(url)
    assert rows.num_captions == len(captions)
    start = data.draw(st.integers(0, len(captions)))
    stop = data.draw(st.integers(start, len(captions) + 3))
    assert rows.read(start, stop) == captions[start:stop]


def test_a_damaged_shard_is_named(tmp_path: object) -> None:
    url = f"{tmp_path}/captions"
    write_captions(url, [make_captions(3)])
    rows = CaptionRows.open(url)
    shard = next(name for name in storage.list_files(url) if name.startswith("shards/"))
    storage.replace_bytes(b"something else", f"{url}/{shard}")
    with pytest.raises(DamagedFileError, match=f"{shard} is damaged"):
        rows.read(0, 3)


def test_an_index_that_changed_after_planning_is_refused(tmp_path: object) -> None:
    url = f"{tmp_path}/captions"
    write_captions(url, [make_captions(3)])
    rows = CaptionRows.open(url).rows
    stale = CaptionRows(dataclasses.replace(rows, checksum="0" * 64))
    with pytest.raises(DamagedFileError, match="changed while"):
        stale.read(0, 1)


def test_no_index_and_an_index_of_something_else(tmp_path: object) -> None:
    with pytest.raises(MissingFileError):
        CaptionRows.open(f"{tmp_path}/captions")
    storage.replace_bytes(b"no Parquet", f"{tmp_path}/index.parquet")
    with pytest.raises(DamagedFileError):
        CaptionRows.open(str(tmp_path))
