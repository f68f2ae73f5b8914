import json
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from transforms.core.checksums import add_checksum, remove_checksum

KEY = "it_sha256"
texts = st.text(st.characters(codec="utf-8"))
leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts
json_values = st.recursive(
    leaves, lambda inner: st.lists(inner) | st.dictionaries(texts, inner), max_leaves=8
)


@given(values=st.dictionaries(texts.filter(lambda name: name != KEY), json_values))
def test_a_file_of_json_or_yaml_has_the_checksum_that_was_written(values: dict[str, Any]) -> None:
    written = add_checksum(values, KEY)
    assert len(written[KEY]) == 64
    for read in (json.loads(json.dumps(written)), yaml.safe_load(yaml.safe_dump(written))):
        assert remove_checksum(read, KEY, values.keys()) == values


def test_tuples_are_read_back_as_lists() -> None:
    written = add_checksum({"sizes": (64, 32)}, KEY)
    for read in (json.loads(json.dumps(written)), yaml.safe_load(yaml.safe_dump(written))):
        assert remove_checksum(read, KEY, ["sizes"]) == {"sizes": [64, 32]}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"steps": 13}, "does not have its checksum"),
        ({"steps": 12.0}, "does not have its checksum"),
        ({KEY: "0" * 64}, "does not have its checksum"),
        ({KEY: None}, "does not have its checksum"),
        ({"name": "a"}, "does not have its checksum"),
        ({"colour": 1}, "key 'colour' is unknown"),
        ({"it_sha257": "0"}, "key 'it_sha257' is unknown"),
        ({"steps": {1: 2, "1": 3}}, "not of JSON"),
    ],
)
def test_other_content_is_refused(change: dict[str, Any], sentence: str) -> None:
    written = add_checksum({"steps": 12}, KEY)
    with pytest.raises(ValueError, match=sentence):
        remove_checksum({**written, **change}, KEY, ["steps", "name"])


@pytest.mark.parametrize("content", [None, 3, "text", [["steps", 12]]])
def test_content_without_keys_is_refused(content: object) -> None:
    with pytest.raises(ValueError, match="expected keys and values"):
        remove_checksum(content, KEY, ["steps"])


def test_a_file_of_an_earlier_version_has_no_checksum() -> None:
    assert remove_checksum({"steps": 12}, KEY, ["steps", "name"]) == {"steps": 12}
