from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.concepts import MAX_NAME_LENGTH, load_concepts
from transforms.core.config import ConfigError

LIST = """
backgrounds:
  wild: [forest, meadow]
sources:
  - source: animals
    share: 3
    backgrounds: wild
    concepts:
      - fox
      - {name: cat, weight: 2, backgrounds: [sofa]}
  - source: places
    kind: place
    concepts: [harbour, {name: marble, kind: texture}]
"""


def write(tmp_path: Path, text: str, name: str = "list.yaml") -> str:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_list_states_kinds_weights_and_backgrounds(tmp_path: Path) -> None:
    fox, cat, harbour, marble = load_concepts(write(tmp_path, LIST))
    assert (fox.name, fox.source, fox.kind, fox.backgrounds) == (
        "fox",
        "animals",
        "object",
        ("forest", "meadow"),
    )
    assert cat.backgrounds == ("sofa",)
    assert (harbour.kind, marble.kind) == ("place", "texture")
    assert harbour.backgrounds == ()
    # Animals have three quarters of the captions, and the cat twice as many as the fox.
    assert [c.weight for c in (fox, cat, harbour, marble)] == pytest.approx(
        [0.25, 0.5, 0.125, 0.125]
    )


@given(
    shares=st.lists(st.floats(0.01, 100), min_size=1, max_size=4),
    sizes=st.lists(st.integers(1, 5), min_size=4, max_size=4),
)
def test_weights_sum_to_one_and_sources_get_their_shares(
    tmp_path_factory: pytest.TempPathFactory, shares: list[float], sizes: list[int]
) -> None:
    lines = []
    for i, (share, size) in enumerate(zip(shares, sizes, strict=False)):
        names = ", ".join(f"c{n}" for n in range(size))
        lines.append(f"  - {{source: s{i}, share: {share}, concepts: [{names}]}}\n")
    sources = "".join(lines)
    concepts = load_concepts(write(tmp_path_factory.mktemp("lists"), f"sources:\n{sources}"))
    assert sum(c.weight for c in concepts) == pytest.approx(1)
    for i, share in enumerate(shares):
        weight = sum(c.weight for c in concepts if c.source == f"s{i}")
        assert weight == pytest.approx(share / sum(shares))


def test_a_text_file_has_one_object_per_line(tmp_path: Path) -> None:
    concepts = load_concepts(write(tmp_path, "# animals\nfox\n\n  red panda \n", "animals.txt"))
    assert [(c.name, c.source, c.kind) for c in concepts] == [
        ("fox", "animals", "object"),
        ("red panda", "animals", "object"),
    ]
    assert concepts[0].weight == 0.5


@pytest.mark.parametrize("name", ["猫", "crème brûlée", "jack-o'-lantern", 'a "quote"', "🦊", "X"])
def test_names_of_any_script_are_kept_as_written(tmp_path: Path, name: str) -> None:
    assert load_concepts(write(tmp_path, name, "list.txt"))[0].name == name


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("sources: []", "is empty: expected at least one concept"),
        ("sources: [{source: a, concepts: []}]", "source 'a' has no concepts"),
        ("sources: [{source: a, concepts: [fox, Fox]}]", "source 'a' names 'Fox' twice"),
        ("sources: [{source: a, concepts: ['  ']}]", "a concept without a name"),
        (
            f"sources: [{{source: a, concepts: [{'x' * (MAX_NAME_LENGTH + 1)}]}}]",
            f"has {MAX_NAME_LENGTH + 1} letters: expected one line of at most {MAX_NAME_LENGTH}",
        ),
        ("sources: [{source: a, concepts: [{name: fox, colour: red}]}]", "colour"),
        ("sources: [{source: a, concepts: [{name: fox, weight: 0}]}]", "weight"),
        ("sources: [{source: a, concepts: [{name: fox, kind: animal}]}]", "kind"),
        ("sources: [{source: a, backgrounds: sea, concepts: [fox]}]", "background list 'sea'"),
        (
            "sources: [{source: a, backgrounds: [''], concepts: [fox]}]",
            "background of 'a' is empty",
        ),
        ("sources: [{source: a, concepts: [true]}]", "concepts"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_concepts(write(tmp_path, text))
    assert sentence in str(error.value)
    assert "list.yaml" in str(error.value)


def test_files_that_cannot_be_lists(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_concepts(str(tmp_path / "none.txt"))
    with pytest.raises(ConfigError, match=r"must be a \.yaml or \.txt file"):
        load_concepts(write(tmp_path, "fox", "list.docx"))
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_concepts(str(tmp_path / "latin.txt"))
    with pytest.raises(ConfigError, match=r"is empty|has no concepts"):
        load_concepts(write(tmp_path, "# nothing\n", "empty.txt"))
