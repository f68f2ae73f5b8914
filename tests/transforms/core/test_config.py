from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pytest
from pydantic import Field

from transforms.core.config import (
    Config,
    chosen_by,
    fields_of_other_choices,
    fingerprint_fields,
    load_config,
    load_data,
    no_fingerprint,
    parse_config,
    stored_config,
)
from transforms.core.config_keys import describe
from transforms.core.errors import ConfigError


class Sampler(Config):
    steps: int = Field(50, ge=1)
    """Denoising steps; the paper uses 50."""
    name: Literal["ddim", "ddpm"] = "ddim"
    """The sampler."""


class Job(Config):
    run: str = no_fingerprint()
    """Folder of the run."""
    seed: int = 0
    """Seed of everything random."""
    sampler: Sampler = Sampler()
    datasets: tuple[str, ...] = no_fingerprint(())
    """Data sets."""
    share: float = no_fingerprint(0.5)
    """A share."""
    scale: tuple[float, float] | None = no_fingerprint(None)
    """Lowest and highest scale."""


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    return str(path)


def test_overrides_reach_into_sections(tmp_path: Path) -> None:
    path = write(tmp_path, "run: out\nsampler: {steps: 10}\n")
    job = load_config(Job, path, ["sampler.steps=12", "seed=3", "seed=4"])
    assert (job.sampler.steps, job.seed, job.run) == (12, 4, "out")


@pytest.mark.parametrize(
    ("text", "overrides", "expected"),
    [
        ("run: out\nsede: 3\n", [], "unknown key 'sede' (value 3): did you mean 'seed'?"),
        ("seed: 3\n", [], "key 'run' is missing: expected str"),
        ("run: out\n", ["seed=many"], "key 'seed' has value 'many': expected a whole number"),
        ("run: out\n", ["share=half"], "key 'share' has value 'half': expected a number"),
        ("run: out\n", ["sampler=ddim"], "'sampler' has value 'ddim': expected a section of keys"),
        ("run: out\n", ["datasets=birds"], "expected a list, write datasets=[birds]"),
        ("run: out\n", ["share=.inf"], "key 'share' has value inf: expected a finite number"),
        ("run: out\n", ["scale=[1,.nan]"], "'scale.1' has value nan: expected a finite number"),
        ("run: out\n", ["scale=1"], "key 'scale' has value 1: expected a list of 2 numbers"),
        ("run: out\n", ["scale=[1,2,3]"], "[1, 2, 3]: expected a list of 2 numbers"),
        ("run: out\nsampler: {steps: 0}\n", [], "'sampler.steps' has value 0: expected at least 1"),
        ("run: out\nsampler: {name: euler}\n", [], "'euler': expected 'ddim' or 'ddpm'"),
        ("run: out\nsampler: {step: 5}\n", [], "did you mean 'sampler.steps'?"),
        ("run: out\nsampler: {name: ddpm}\n", ["name=ddim"], "did you mean 'sampler.name'?"),
        ("run: out\n", ["seed"], "override 'seed' is not of the form key=value"),
        ("run: out\n", ["datasets=[a:]"], "override 'datasets=[a:]' cannot be read: while"),
        ("run: out\n", ["[=1"], "override '[=1' cannot be read"),
        ("run: out\ndatasets: [a]\n", ["datasets[0]=b"], "override 'datasets[0]=b' cannot be read"),
        ("run: [\n", [], "is not valid YAML"),
        ("- 1\n", [], "must hold `key: value` lines"),
        ("5\n", [], "must hold `key: value` lines"),
        ("run: ${nowhere}\n", [], "cannot be resolved"),
    ],
)
def test_every_mistake_is_one_sentence(
    tmp_path: Path, text: str, overrides: list[str], expected: str
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_config(Job, path, overrides)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def message(tmp_path: Path, text: str, *overrides: str) -> str:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_config(Job, path, overrides)
    return str(caught.value).replace(path, "CONFIG")


def test_the_config_of_another_job_is_taken_for_one(tmp_path: Path) -> None:
    assert message(tmp_path, "a: 1\nb: {c: 1}\nsede: 2\nsampler: {size: 1}\n") == (
        "CONFIG looks like the config of another job: unknown keys 'sampler.size', 'a', 'b', 'sede'"
    )
    assert "another job" not in message(tmp_path, "run: out\n", "a=1", "b=2", "c=3")


def test_unknown_keys_are_one_sentence_with_the_known_keys_once(tmp_path: Path) -> None:
    assert message(tmp_path, "run: out\nzoom: 1\nsede: 2\n") == (
        "CONFIG: unknown keys 'zoom' (value 1), 'sede' (value 2, did you mean 'seed'?): "
        "known keys are run, seed, sampler, datasets, share, scale"
    )
    assert message(tmp_path, "run: out\nsampler: {zoom: 1}\n") == (
        "CONFIG: unknown key 'sampler.zoom' (value 1): known keys are sampler.steps, sampler.name"
    )
    assert "known keys are" not in message(tmp_path, "run: out\nsampler: {a: 1, b: 2, c: 3}\n")


@pytest.mark.parametrize("short", ["[]", "[1]"])
def test_a_list_that_is_too_short_is_said_once(tmp_path: Path, short: str) -> None:
    assert message(tmp_path, "run: out\n", f"scale={short}") == (
        f"CONFIG: key 'scale' has value {short}: expected a list of 2 numbers"
    )


def test_no_hint_names_a_key_that_is_given(tmp_path: Path) -> None:
    assert "did you mean" not in message(tmp_path, "run: out\nseed: 1\nsede: 2\n")


def test_a_long_value_is_cut(tmp_path: Path) -> None:
    assert len(message(tmp_path, f"run: out\nzoom: {'x' * 5000}\n")) < 400


def test_a_folder_is_no_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a folder: expected a YAML file"):
        load_config(Job, str(tmp_path))


def test_missing_file_names_it() -> None:
    with pytest.raises(ConfigError, match=r"'absent\.yaml' cannot be read"):
        load_config(Job, "absent.yaml")


def test_a_file_that_is_no_text_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_bytes("run: été\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"job\.yaml' cannot be read: it is not UTF-8 text"):
        load_config(Job, str(path))


def test_frozen() -> None:
    job = Job(run="out")
    with pytest.raises(ValueError, match="frozen"):
        job.seed = 1  # type: ignore[misc]


def test_fingerprint_leaves_out_where_a_run_stands() -> None:
    assert fingerprint_fields(Job(run="a")) == fingerprint_fields(Job(run="b"))
    assert fingerprint_fields(Job(run="a")) == {
        "seed": 0,
        "sampler.steps": 50,
        "sampler.name": "ddim",
    }


def test_help_describes_every_key() -> None:
    text = describe(Job)
    for words in ("sampler.steps  (int, default 50)", "the paper uses 50", "run  (str, required)"):
        assert words in text


class Wood(Config):
    kind: Literal["wood"] = "wood"
    grain: int = 3
    """Lines of grain."""


class Steel(Config):
    kind: Literal["steel"] = "steel"
    grade: int = 304
    """Number of the alloy."""
    coating: str | None = None
    """Colour of the paint."""


Material = Annotated[Wood | Steel, Field(discriminator="kind"), chosen_by("kind", "wood")]


class Chair(Config):
    moved: ClassVar[dict[str, str]] = {"paint": "material.coating", "old": "material"}
    legs: int = 4
    """Number of legs."""
    material: Material = Wood()
    """Material of the chair."""


def chair(*overrides: str, text: str = "legs: 3\n") -> Chair:
    return parse_config(Chair, text, "CONFIG", overrides)


def test_a_section_is_chosen_by_its_key() -> None:
    assert chair().material == Wood()
    assert chair("material.grain=5").material == Wood(grain=5)
    assert chair("material.kind=steel", "material.grade=316").material == Steel(grade=316)
    assert fingerprint_fields(chair("material.kind=steel")) == {
        "legs": 4 - 1,
        "material.kind": "steel",
        "material.grade": 304,
        "material.coating": None,
    }


def test_another_choice_leaves_the_section_of_the_file_behind() -> None:
    text = "material: {kind: steel, grade: 1}\n"
    assert chair(text=text).material == Steel(grade=1)
    assert chair("material.kind=steel", "material.coating=red", text=text).material == Steel(
        grade=1, coating="red"
    )
    assert chair("material.kind=wood", text=text).material == Wood()


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("material.kind=glass", "key 'material.kind' has value 'glass': expected 'wood', 'steel'"),
        ("material=steel", "key 'material' has value 'steel': expected a section, with this as"),
        ("material.grain=few", "key 'material.grain' has value 'few': expected a whole number"),
        ("material.grade=1", "unknown key 'material.grade' (value 1): known keys are material."),
        ("material.grian=1", "unknown key 'material.grian' (value 1): did you mean"),
        ("paint=red", "CONFIG: key 'paint' is now 'material.coating'"),
        ("old.grain=1", "CONFIG: key 'old.grain' is now 'material.grain'"),
    ],
)
def test_mistakes_in_a_chosen_section_are_sentences(override: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        chair(override)
    assert expected in str(caught.value)
    assert ".wood." not in str(caught.value)


def test_help_names_the_keys_of_every_choice() -> None:
    text = describe(Chair)
    assert "with material.kind=steel:" in text
    assert "material.grain" in text
    assert "material.coating" in text


def test_a_stored_config_of_an_earlier_version_is_read() -> None:
    stored = {"legs": 3, "paint": "red", "material": {"kind": "steel", "grain": 7, "grade": 5}}
    assert stored_config(Chair, stored, "run.yaml") == Chair(
        legs=3, material=Steel(grade=5, coating="red")
    )
    with pytest.raises(ConfigError, match=r"run\.yaml: unknown key 'wings'"):
        stored_config(Chair, {"wings": 2}, "run.yaml")


def test_a_stored_config_gets_the_keys_that_its_version_did_not_have() -> None:
    class Stool(Config):
        legs: int = 4
        feet: str = "rubber"

        @classmethod
        def of_this_version(cls, fields: Mapping[str, Any]) -> dict[str, Any]:
            return {"feet": "wood", **fields}

    assert stored_config(Stool, {"legs": 3}, "run.yaml") == Stool(legs=3, feet="wood")
    stored = Stool(legs=3).written()
    assert stored_config(Stool, stored, "run.yaml").feet == "rubber", "of this version"
    assert parse_config(Stool, "legs: 3", "stool.yaml").feet == "rubber", "not stored"


def test_the_keys_of_other_choices_are_known() -> None:
    assert fields_of_other_choices(Chair()) == {"material.grade", "material.coating"}
    assert fields_of_other_choices(Chair(material=Steel())) == {"material.grain"}


def test_long_lists_are_read_but_no_aliases_that_explode(tmp_path: Path) -> None:
    names = [f"set {number}" for number in range(20_000)]
    path = write(tmp_path, f"run: out\ndatasets: [{', '.join(names)}]\n")
    assert load_data(Job, path).datasets == tuple(names)
    levels = [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10)}]" for i in range(1, 6)]
    path = write(tmp_path, "\n".join(["l0: &l0 [x, x]", *levels]))
    with pytest.raises(ConfigError, match="is not valid YAML"):
        load_data(Job, path)
