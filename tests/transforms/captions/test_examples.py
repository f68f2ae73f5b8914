from pathlib import Path

import pytest

from tests.support.paths import PIPELINE_DATA
from transforms.captions.examples import GROUPS, load_examples, load_relations
from transforms.core.errors import ConfigError

DATA = PIPELINE_DATA
RELATIONS = load_relations(str(DATA / "relations.yaml"))


def test_the_relations_are_those_of_the_paper() -> None:
    assert len(set(RELATIONS)) == 10


def write_groups(folder: Path, **changed: str) -> str:
    for group in GROUPS:
        context = f", {group}: there" if group in ("background", "relation") else ""
        entries = [f"{{concept: thing {i}{context}, caption: A thing {i}}}" for i in range(3)]
        text = changed.get(group, f"examples: [{', '.join(entries)}]")
        (folder / f"{group}.yaml").write_text(text)
    return str(folder)


def test_own_examples(tmp_path: Path) -> None:
    lines = load_examples(write_groups(tmp_path)).lines
    assert lines["places"][0] == "thing 0 => A thing 0"
    assert lines["relation"][2] == "thing 2, there => A thing 2"


@pytest.mark.parametrize(
    ("group", "text", "sentence"),
    [
        ("objects", "examples: [{concept: a, caption: b}]", "has 1 examples: expected at least 3"),
        (
            "objects",
            "examples: [{concept: a, relation: under, caption: b}]",
            "and neither background nor",
        ),
        ("background", "examples: [{concept: a, caption: b}]", "and a background, no relation"),
        ("places", 'examples: [{concept: a, caption: "b\\nc"}]', "one line of caption"),
        ("textures", "examples: [{concept: a}]", "caption"),
    ],
)
def test_wrong_examples(tmp_path: Path, group: str, text: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_examples(write_groups(tmp_path, **{group: text}))
    assert sentence in str(error.value)
    assert f"{group}.yaml" in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    folder = write_groups(tmp_path)
    (tmp_path / "places.yaml").unlink()
    with pytest.raises(ConfigError, match=r"places\.yaml"):
        load_examples(folder)
    (tmp_path / "relations.yaml").write_text("relations: ['']")
    with pytest.raises(ConfigError, match="none empty"):
        load_relations(str(tmp_path / "relations.yaml"))
