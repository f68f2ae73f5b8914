import unicodedata
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms.concepts.lists import load_concepts
from transforms.core.errors import ConfigError
from transforms.core.records import CONCEPT_SCHEMA, Concept, Kind, to_table

TABLE = """name,weight,kind,backgrounds,hypernym
fox,3,,forest; snowy meadow,canine
"harbour, old",1,place,,
"""


def write(tmp_path: Path, text: str, name: str = "list.csv") -> str:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_csv_file_states_weight_kind_and_backgrounds(tmp_path: Path) -> None:
    assert load_concepts(write(tmp_path, TABLE)) == (
        Concept("fox", "list", "object", 0.75, ("forest", "snowy meadow"), "canine"),
        Concept("harbour, old", "list", "place", 0.25, ()),
    )


def test_a_place_with_a_comma_ends_with_the_separator(tmp_path: Path) -> None:
    path = write(tmp_path, 'name,backgrounds,\nfox,"a wood, snowed in;",\n')
    assert load_concepts(path)[0].backgrounds == ("a wood, snowed in",)


def test_a_spreadsheet_s_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    assert load_concepts(write(tmp_path, "\ufeffname\nfox\n"))[0].name == "fox"


def test_a_parquet_file_needs_names_only(tmp_path: Path) -> None:
    pq.write_table(pa.table({"name": ["fox", "owl"]}), tmp_path / "list.parquet")
    concepts = load_concepts(str(tmp_path / "list.parquet"))
    assert [(c.name, c.weight, c.kind) for c in concepts] == [
        ("fox", 0.5, "object"),
        ("owl", 0.5, "object"),
    ]


def test_empty_cells_of_a_parquet_file_are_as_good_as_none(tmp_path: Path) -> None:
    columns = {"name": ["fox"], "kind": [""], "backgrounds": [""], "source": [""]}
    pq.write_table(pa.table({**columns, "hypernym": [""]}), tmp_path / "list.parquet")
    (concept,) = load_concepts(str(tmp_path / "list.parquet"))
    assert concept == Concept("fox", "list", "object", 1.0, ())


KINDS: tuple[Kind, ...] = ("object", "place", "texture")
names = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=8)


@settings(deadline=None, max_examples=30)
@given(
    st.dictionaries(
        names,
        st.tuples(
            st.sampled_from("ab"),
            st.sampled_from(KINDS),
            st.floats(0.01, 10),
            st.lists(names, max_size=3),
            st.none() | names,
        ),
        min_size=1,
        max_size=6,
    )
)
def test_what_is_written_as_a_table_is_read_back(
    tmp_path_factory: pytest.TempPathFactory,
    rows: dict[str, tuple[str, Kind, float, list[str], str | None]],
) -> None:
    by_key = {name.casefold(): (name, row) for name, row in rows.items()}
    total = sum(row[2] for _, row in by_key.values())
    concepts = [
        Concept(name, source, kind, weight / total, tuple(places), hypernym)
        for name, (source, kind, weight, places, hypernym) in by_key.values()
    ]
    path = str(tmp_path_factory.mktemp("lists") / "list.parquet")
    pq.write_table(to_table(concepts, CONCEPT_SCHEMA), path)
    again = {c.name: c for c in load_concepts(path)}
    assert len(again) == len(concepts)
    for concept in concepts:
        found = again[unicodedata.normalize("NFC", concept.name)]
        assert found.weight == pytest.approx(concept.weight)
        assert (found.source, found.kind, found.backgrounds, found.hypernym) == (
            concept.source,
            concept.kind,
            concept.backgrounds,
            concept.hypernym,
        )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("name\nfox\n\nFox\n", "list.csv, line 4: source 'list' names 'Fox' twice"),
        ("name,weight\nfox,1\n,2\n", "list.csv, line 3: a concept of source 'list' has no name"),
        ("name,weight\nfox,heavy\n", "list.csv, line 2: column 'weight' has value 'heavy'"),
        ("name,weight\nfox,-1\n", "column 'weight' has value '-1'"),
        ("name,weight\nfox,inf\n", "column 'weight' has value 'inf'"),
        ("name,kind\nfox,animal\n", "column 'kind' has value 'animal'"),
        ("name,colour\nfox,red\n", "line 1: unknown column 'colour': expected name, weight"),
        ("name,wieght\nfox,2\n", "line 1: unknown column 'wieght': did you mean 'weight'?"),
        ("Name\nfox\n", "line 1: unknown column 'Name': did you mean 'name'?"),
        ("weight\n2\n", "list.csv, line 1: column 'name' is missing"),
        ("name,\nfox,red\n", "line 2: column '' has value 'red'"),
        (
            "name,backgrounds\nfox,wood|snow\n",
            "line 2: column 'backgrounds' has value 'wood|snow': places are separated by ';'",
        ),
        ('name,backgrounds\nfox,"wood, snow"\n', "'wood, snow': places are separated by ';'"),
        ("name\nfox,red\n", "expected name, weight"),
        (f"name\n{'x' * 81}\n", "line 2: concept 'xxx"),
        ("name\n", "is empty: expected at least one concept"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_concepts(write(tmp_path, text))
    assert sentence in str(error.value)


def test_a_source_that_is_no_name_is_said_with_its_row(tmp_path: Path) -> None:
    pq.write_table(pa.table({"name": ["fox"], "source": [5]}), tmp_path / "list.parquet")
    with pytest.raises(ConfigError, match=r"row 1: column 'source' has value 5: expected a name"):
        load_concepts(str(tmp_path / "list.parquet"))


def test_lines_of_text_are_counted_as_an_editor_does(tmp_path: Path) -> None:
    path = write(tmp_path, "# animals\nfox\n\nfox\n", "animals.txt")
    with pytest.raises(ConfigError, match=r"animals\.txt, line 4: source 'animals' names 'fox'"):
        load_concepts(path)


def test_what_is_no_table_at_all(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_concepts(write(tmp_path, "fox", "list.parquet"))
    pq.write_table(pa.table({"title": ["fox"]}), tmp_path / "other.parquet")
    with pytest.raises(ConfigError, match=r"row 1: column 'title' has value 'fox'"):
        load_concepts(str(tmp_path / "other.parquet"))
