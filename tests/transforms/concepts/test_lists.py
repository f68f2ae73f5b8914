from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms.concepts.imagenet import MAX_NAME_LENGTH
from transforms.concepts.lists import Duplicate, load_concepts, read_list
from transforms.core.errors import ConfigError

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


@settings(deadline=None, max_examples=30)
@given(
    shares=st.lists(st.floats(0.01, 100), min_size=1, max_size=4),
    sizes=st.lists(st.integers(1, 5), min_size=4, max_size=4),
)
def test_weights_sum_to_one_and_sources_get_their_shares(
    tmp_path_factory: pytest.TempPathFactory, shares: list[float], sizes: list[int]
) -> None:
    lines = []
    for i, (share, size) in enumerate(zip(shares, sizes, strict=False)):
        names = ", ".join(f"s{i} c{n}" for n in range(size))
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


def test_what_two_sources_name_stays_with_the_first(tmp_path: Path) -> None:
    text = """
sources:
  - {source: a, share: 3, concepts: [fox, Library]}
  - {source: b, share: 1, concepts: [FOX, owl, hen]}
  - {source: c, share: 4, kind: place, concepts: [library]}
"""
    found = read_list(write(tmp_path, text))
    assert [(c.name, c.source) for c in found.concepts] == [
        ("fox", "a"),
        ("Library", "a"),
        ("owl", "b"),
        ("hen", "b"),
        ("library", "c"),  # A place of that name is another concept.
    ]
    assert found.duplicates == (Duplicate("FOX", "b", "a"),)
    assert [c.weight for c in found.concepts] == [3 / 16, 3 / 16, 1 / 16, 1 / 16, 1 / 2]
    assert found.total_share == 8


def test_a_source_may_be_a_file_beside_the_list(tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    (tmp_path / "cars.txt").write_text("# cars\nAudi TT 2012\nSmart car\n")
    (tmp_path / "roads.txt").write_text("# roads\nbridge\ntunnel\nbridge\n")
    text = "sources: [{source: cars, file: ../cars.txt, suffix: car, backgrounds: ../roads.txt}]"
    concepts = load_concepts(write(tmp_path / "lists", text))
    assert [c.name for c in concepts] == ["Audi TT 2012 car", "Smart car"]
    assert {c.backgrounds for c in concepts} == {("bridge", "tunnel")}


def test_names_are_cleaned(tmp_path: Path) -> None:
    listed = "red_fox\ncafe\u0301  au lait\n"
    concepts = load_concepts(write(tmp_path, listed, "list.txt"))
    assert [c.name for c in concepts] == ["red fox", "caf\u00e9 au lait"]


@pytest.mark.parametrize("name", ["猫", "crème brûlée", "jack-o'-lantern", 'a "quote"', "🦊", "X"])
def test_names_of_any_script_are_kept_as_written(tmp_path: Path, name: str) -> None:
    assert load_concepts(write(tmp_path, name, "list.txt"))[0].name == name


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("sources: []", "is empty: expected at least one concept"),
        ("sources: [{source: a, concepts: []}]", "source 'a' has no concepts"),
        ("sources: [{source: a, concepts: [fox, Fox]}]", "source 'a' names 'Fox' twice"),
        ("sources: [{source: a, concepts: ['  ']}]", "a concept of source 'a' has no name"),
        (
            f"sources: [{{source: a, concepts: [{'x' * (MAX_NAME_LENGTH + 1)}]}}]",
            f"has {MAX_NAME_LENGTH + 1} letters: expected at most {MAX_NAME_LENGTH}",
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
        ("sources: [{source: a}]", "source 'a' has no concepts: expected one of"),
        ("sources: [{source: a, concepts: [fox], file: b.txt}]", "has concepts and file"),
        ("sources: [{source: a, timm: imagenet-2k}]", "timm"),
        (
            "sources: [{source: a, hypernyms: h.tsv, concepts: [fox]}]",
            "has hypernyms, which needs timm",
        ),
        (
            "sources: [{source: a, group_members: m.tsv, timm: imagenet-1k}]",
            "group_members without background_groups",
        ),
        (
            "sources: [{source: a, concepts: [fox]}, {source: b, concepts: [Fox]}]",
            "source 'b' names only concepts of earlier sources",
        ),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_concepts(write(tmp_path, text))
    assert sentence in str(error.value)
    assert "list.yaml" in str(error.value)


@pytest.mark.parametrize("source", ["file: none.txt", "backgrounds: none.txt, concepts: [fox]"])
def test_a_file_beside_the_list_that_is_missing_is_named(tmp_path: Path, source: str) -> None:
    with pytest.raises(ConfigError, match=r"none\.txt' cannot be read"):
        load_concepts(write(tmp_path, f"sources: [{{source: a, {source}}}]"))


def test_files_that_cannot_be_lists(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_concepts(str(tmp_path / "none.txt"))
    with pytest.raises(ConfigError, match=r"must be a \.yaml, \.txt, \.csv, \.parquet file"):
        load_concepts(write(tmp_path, "fox", "list.docx"))
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_concepts(str(tmp_path / "latin.txt"))
    with pytest.raises(ConfigError, match=r"is empty|has no concepts"):
        load_concepts(write(tmp_path, "# nothing\n", "empty.txt"))
