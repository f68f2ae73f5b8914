from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import field_validator

from transforms.core.config import Config, load_data, parse_config, stored_config
from transforms.core.errors import ConfigError
from transforms.core.fingerprint import Fingerprint, FingerprintMismatchError, claim
from transforms.core.references import redacted, resolved, with_references, written_fields

SECRET = "s3cr3t-of-the-test"


class Sampler(Config):
    steps: int = 4
    noise: str = "plain"


class Job(Config):
    moved: ClassVar[dict[str, str]] = {"old_name": "name"}

    run: str
    name: str = ""
    tags: tuple[str, ...] = ()
    seed: int = 0
    sampler: Sampler = Sampler()
    other: Sampler = Sampler()

    @field_validator("tags")
    @classmethod
    def _check(cls, tags: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(tags)) < len(tags):
            raise ValueError(f"expected different tags, not {', '.join(tags)}")
        return tags


TEXT = """
run: ${oc.env:PLACE}/run
name: http://user:${oc.env:SECRET}@host/v1
tags: [plain, "${oc.env:SECRET}"]
seed: ${oc.env:SEED}
sampler:
  steps: ${seed}
other: ${sampler}
"""


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACE", "/data/place")
    monkeypatch.setenv("SECRET", SECRET)
    monkeypatch.setenv("SEED", "123456")


def test_values_are_used_and_references_are_written() -> None:
    job = parse_config(Job, TEXT, "job.yaml")
    assert job.name == f"http://user:{SECRET}@host/v1"
    assert (job.run, job.seed, job.other.steps) == ("/data/place/run", 123456, 123456)
    assert job.written() == {
        "run": "${oc.env:PLACE}/run",
        "name": "http://user:${oc.env:SECRET}@host/v1",
        "tags": ["plain", "${oc.env:SECRET}"],
        "seed": "${oc.env:SEED}",
        "sampler": {"steps": "${seed}", "noise": "plain"},
        "other": "${sampler}",
    }
    assert stored_config(Job, job.written(), "run.yaml") == job
    sampler = stored_config(Sampler, job.written(), "run.yaml", "sampler")
    assert sampler.steps == 123456
    assert sampler.written()["steps"] == "${seed}"


def test_an_abbreviation_is_written_as_its_value() -> None:
    job = parse_config(Job, "{run: r, seed: 3, sampler: {steps: '${seed}'}}", "job.yaml")
    assert job.written()["sampler"]["steps"] == 3


def test_a_stored_reference_that_the_environment_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    written = parse_config(Job, TEXT, "job.yaml").written()
    monkeypatch.delenv("SECRET")
    with pytest.raises(ConfigError, match=r"run\.yaml: key 'name' is .*'SECRET' not found"):
        stored_config(Job, written, "run.yaml")
    found = resolved(written)
    assert found["name"] == written["name"], "it stays as far as it is not known"
    assert found["seed"] == "123456"


LITERAL = st.text("a\\${}:. ", max_size=12)


@given(st.dictionaries(st.sampled_from("abc"), LITERAL | st.lists(LITERAL) | st.integers()))
def test_a_text_that_only_looks_like_a_reference_stays(values: dict[str, Any]) -> None:
    assert resolved(with_references(values, {})) == values


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("seed: '${oc.env:SECRET}'", "key 'seed' has value '${oc.env:SECRET}'"),
        ("sampler: {steps: '${oc.env:SECRET}'}", "'sampler.steps' has value '${oc.env:SECRET}'"),
        ("naem: '${oc.env:SECRET}'", "(value '${oc.env:SECRET}')"),
        ("tags: '${oc.env:SECRET}'", "key 'tags' has value '${oc.env:SECRET}'"),
        ("seed: ${oc.env:SHORT}", "key 'seed' has value '${oc.env:SHORT}'"),
        ("tags: [a, a, '${oc.env:SECRET}']", "different tags, not a, a, ${oc.env:SECRET}"),
    ],
)
def test_errors_show_the_reference(text: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHORT", "xy")
    with pytest.raises(ConfigError) as caught:
        parse_config(Job, f"run: r\n{text}", "job.yaml")
    assert shown in str(caught.value)
    assert SECRET not in str(caught.value)
    assert "xy" not in str(caught.value)


def test_messages_show_references_but_real_places() -> None:
    job = parse_config(Job, TEXT, "job.yaml")
    assert redacted(f"{job.name} does not answer {SECRET}") == (
        "http://user:${oc.env:SECRET}@host/v1 does not answer ${oc.env:SECRET}"
    )
    assert redacted(f"verify {job.run}") == "verify /data/place/run", "a command that works"


def fields(job: Job) -> Fingerprint:
    return Fingerprint({"seed": job.seed, "identity": f"hub:{job.name}", "version": 1})


def test_fields_are_written_as_hashes_and_compared_by_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = str(tmp_path / "run.yaml")
    job = parse_config(Job, TEXT, "job.yaml")
    claim(url, fields(job), job.written())
    text = Path(url).read_text()
    assert SECRET not in text and "123456" not in text
    assert "version: 1" in text

    again = parse_config(Job, TEXT, "job.yaml")
    claim(url, fields(again), again.written())
    plain = parse_config(Job, f"{{run: r, name: 'http://user:{SECRET}@host/v1', seed: 123456}}", "")
    claim(url, fields(plain), plain.written())

    monkeypatch.setenv("SEED", "654321")
    other = parse_config(Job, TEXT, "job.yaml")
    with pytest.raises(FingerprintMismatchError, match=r"seed: .* there, .* here") as caught:
        claim(url, fields(other), other.written())
    assert "identity" not in str(caught.value)
    assert "${oc.env:SEED}" in str(caught.value) and "654321" not in str(caught.value)


def test_a_run_begun_with_plain_values_continues_with_references(tmp_path: Path) -> None:
    url = str(tmp_path / "run.yaml")
    plain = parse_config(Job, "{run: r, name: plain, seed: 123456}", "job.yaml")
    claim(url, fields(plain), plain.written())
    same = parse_config(Job, "{run: r, name: plain, seed: '${oc.env:SEED}'}", "job.yaml")
    claim(url, fields(same), same.written())
    assert fields(plain).digest == fields(same).digest


def test_the_digest_of_hidden_fields_is_read_from_the_file() -> None:
    job = parse_config(Job, TEXT, "job.yaml")
    written = written_fields(fields(job).fields, job.written())
    content = {"fields": written, "fingerprint": fields(job).digest}
    assert Fingerprint.recorded(content).digest == fields(job).digest
    whole = {"fields": {"seed": 1}, "fingerprint": "damaged"}
    assert Fingerprint.recorded(whole).digest == Fingerprint({"seed": 1}).digest


def test_data_files_have_no_interpolation(tmp_path: Path) -> None:
    path = tmp_path / "list.yaml"
    for text in ("tags: [plain, 'a ${oc.env:SECRET}']", "tags: [plain, '${run}']"):
        path.write_text(f"run: r\n{text}")
        with pytest.raises(ConfigError, match=r"list\.yaml: key 'tags\.1' contains '\$\{'"):
            load_data(Job, str(path))
    path.write_text("run: r\ntags: [costs 5 $]")
    assert load_data(Job, str(path)).tags == ("costs 5 $",)
