import pytest
import yaml

from transforms.core import storage
from transforms.core.errors import ConfigError
from transforms.core.fingerprint import Fingerprint, FingerprintMismatchError, claim


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
