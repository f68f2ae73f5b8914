import json
from dataclasses import replace

import pytest

from tests.support.counting_stage import stage
from transforms.core import storage
from transforms.core.errors import DamagedFileError
from transforms.core.fingerprint import claim
from transforms.core.shards import StageFolder
from transforms.core.stages import (
    STAGES,
    StageOutput,
    find_outputs,
    read_output,
    stage_folder,
    write_plan,
)


def begin(folder: StageFolder) -> StageOutput:
    output = replace(stage(folder.url, 3), folder=folder)
    claim(output.folder.run_yaml_url, output.fingerprint, output.config)
    write_plan(output)
    return output


def test_an_output_is_read_back_from_its_folder(any_storage: str) -> None:
    folder = StageFolder(f"{any_storage}/captions", STAGES["captions"])
    assert read_output(folder) is None
    written = begin(folder)
    found = read_output(folder)
    assert found is not None
    for name in ("folder", "config", "num_shards", "num_records", "unit", "metadata"):
        assert getattr(found, name) == getattr(written, name)
    assert found.fingerprint.digest == written.fingerprint.digest


def test_the_stages_of_a_run_are_found_with_their_retries(tmp_path: object) -> None:
    names = ["captions-raw", "images", "images/retry-1", "images/retry-2"]
    for name in [*names, "captions-raw/retry-2"]:
        begin(stage_folder(str(tmp_path), name))
    begin(StageFolder(f"{tmp_path}/elsewhere", STAGES["images"]))
    found = [output.folder.url for output in find_outputs(str(tmp_path))]
    assert found == [f"{tmp_path}/{name}" for name in names]


def test_the_plan_of_another_kind_of_stage_is_refused(tmp_path: object) -> None:
    folder = begin(stage_folder(str(tmp_path), "captions")).folder
    with pytest.raises(DamagedFileError, match=r"its files are captions-\*\.parquet"):
        read_output(StageFolder(folder.url, STAGES["images"]))


def test_a_damaged_plan_is_a_sentence(tmp_path: object) -> None:
    folder = begin(stage_folder(str(tmp_path), "captions")).folder
    for text in (b"{", b"[]", b'{"name": "captions"}'):
        storage.replace_bytes(text, folder.plan_url)
        with pytest.raises(DamagedFileError, match=r"plan\.json next to it is damaged"):
            read_output(folder)


def test_a_flipped_bit_anywhere_in_a_plan_is_noticed(tmp_path: object) -> None:
    folder = begin(stage_folder(str(tmp_path), "captions")).folder
    content = storage.read_bytes(folder.plan_url)
    for place in range(8 * len(content)):
        changed = bytearray(content)
        changed[place // 8] ^= 1 << place % 8
        if json.loads(content) == _parsed(bytes(changed)):
            continue  # A space has become another one.
        storage.replace_bytes(bytes(changed), folder.plan_url)
        with pytest.raises(DamagedFileError, match=r"plan\.json"):
            read_output(folder)


def _parsed(content: bytes) -> object:
    try:
        return json.loads(content)
    except ValueError:
        return None


def test_a_plan_of_an_earlier_version_has_no_checksum(tmp_path: object) -> None:
    written = begin(stage_folder(str(tmp_path), "captions"))
    plan = json.loads(storage.read_bytes(written.folder.plan_url))
    del plan["plan_sha256"]
    storage.replace_bytes(json.dumps(plan).encode(), written.folder.plan_url)
    found = read_output(written.folder)
    assert found is not None
    assert found.num_records == written.num_records
