import pytest

from tests.support.counting_stage import stage
from transforms.core import storage
from transforms.core.errors import DamagedFileError
from transforms.core.fingerprint import claim
from transforms.core.stages import StageOutput, find_outputs, read_output, write_plan


def begin(url: str) -> StageOutput:
    output = stage(url, 3)
    claim(output.folder.run_yaml_url, output.fingerprint, output.config)
    write_plan(output)
    return output


def test_an_output_is_read_back_from_its_folder(any_storage: str) -> None:
    url = f"{any_storage}/captions"
    assert read_output(url) is None
    written = begin(url)
    found = read_output(url)
    assert found is not None
    for name in ("folder", "config", "num_shards", "num_records", "unit", "metadata"):
        assert getattr(found, name) == getattr(written, name)
    assert found.fingerprint.digest == written.fingerprint.digest


def test_the_stages_of_a_run_are_found_with_their_retries(tmp_path: object) -> None:
    names = ["captions-raw", "images", "images/retry-1", "images/retry-2"]
    for name in [*names, "captions-raw/retry-2", "elsewhere"]:
        begin(f"{tmp_path}/{name}")
    found = [output.folder.url for output in find_outputs(str(tmp_path))]
    assert found == [f"{tmp_path}/{name}" for name in names]


def test_a_damaged_plan_is_a_sentence(tmp_path: object) -> None:
    url = f"{tmp_path}/captions"
    plan_url = begin(url).folder.plan_url
    for text in (b"{", b"[]", b'{"name": "captions"}'):
        storage.replace_bytes(text, plan_url)
        with pytest.raises(DamagedFileError, match=r"plan\.json beside it is damaged"):
            read_output(url)
