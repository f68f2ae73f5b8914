import pickle
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from tests.support.prompts import CONCEPTS, chi_square
from transforms.captions.filters import FilterConfig
from transforms.captions.producer import CaptionProducer
from transforms.captions.variants import FilePrompts, WordPrompts, variant_concepts
from transforms.core.counters import Tally
from transforms.core.errors import ConfigError
from transforms.core.records import Caption, Concept, Failure

FOX = Concept("fox", "animals", "object", 0.5, ("forest",), "canine")
KETTLE = Concept("kettle", "things", "object", 0.3, ())
PLACES = (
    Concept("harbour", "places", "place", 0.1, ("ignored",)),
    Concept("quarry", "places", "place", 0.1, ()),
)
LISTED = (FOX, KETTLE, *PLACES)


def test_places_stand_in_for_backgrounds() -> None:
    assert variant_concepts("full", LISTED) == LISTED
    assert variant_concepts("IN+OurBG+LLM", LISTED) == (FOX, KETTLE)
    for variant in ("IN+Places+LLM", "IN+h+Places"):
        concepts = variant_concepts(variant, LISTED)
        assert [c.name for c in concepts] == ["fox", "kettle"]
        assert {c.backgrounds for c in concepts} == {("harbour", "quarry")}


def test_of_a_list_with_imagenet_only_its_classes_are_in() -> None:
    wren = Concept("wren", "imagenet-1k", "object", 0.5, ("hedge",), "bird")
    for variant in ("IN+OurBG+LLM", "IN+Places+LLM", "IN+h+Places"):
        assert [c.name for c in variant_concepts(variant, (*LISTED, wren))] == ["wren"]
    assert variant_concepts("full", (*LISTED, wren)) == (*LISTED, wren)


@pytest.mark.parametrize(
    ("variant", "concepts", "missing"),
    [
        ("IN+Places+LLM", (FOX,), "place"),
        ("IN+h+Places", (KETTLE, *PLACES), "hypernym"),
        ("IN+OurBG+LLM", (KETTLE, *PLACES), "object with backgrounds"),
        ("IN+Places+LLM", PLACES, "object with backgrounds"),
    ],
)
def test_lists_that_lack_what_a_variant_needs(
    variant: str, concepts: tuple[Concept, ...], missing: str
) -> None:
    with pytest.raises(ConfigError, match=f"'captions.variant'.*at least one {missing}"):
        variant_concepts(variant, concepts)  # type: ignore[arg-type]


def test_words_are_joined_and_drawn_by_weight() -> None:
    words = WordPrompts(variant_concepts("IN+h+Places", LISTED), seed=3)
    prompts = [words.build(ordinal) for ordinal in range(8_000)]
    seen = Counter(prompt.text for prompt in prompts)
    texts = [
        "fox, canine inside harbour",
        "fox, canine inside quarry",
        "kettle inside harbour",
        "kettle inside quarry",
    ]
    assert set(seen) == set(texts)
    shares = [0.3125, 0.3125, 0.1875, 0.1875]
    assert chi_square([seen[text] for text in texts], shares) < 16.3  # p 0.001
    again = pickle.loads(pickle.dumps(words))
    assert [again.build(i) for i in range(50)] == prompts[:50]
    assert all(p.background in ("harbour", "quarry") for p in prompts)
    assert words.digests() != WordPrompts(CONCEPTS, seed=3).digests()


def write(path: Path, texts: list[str]) -> str:
    table = pa.table({"url": ["x"] * len(texts), "caption": texts, "concept": ["fox"] * len(texts)})
    if path.suffix == ".txt":
        path.write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    elif path.suffix == ".csv":
        pyarrow.csv.write_csv(table, path)
    else:
        pq.write_table(table, path)
    return str(path)


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".parquet"])
def test_captions_of_a_file_become_a_shard_without_an_engine(tmp_path: Path, suffix: str) -> None:
    texts = ['A fox, "asleep", in the snow.', "Two foxes", "Ein Füchslein im tiefen Schnee"]
    path = write(tmp_path / f"given{suffix}", [*texts, "not asked for"])
    given = FilePrompts.open(path)
    assert len(given) == 4
    assert given == pickle.loads(pickle.dumps(given))
    producer = CaptionProducer(given, None, FilterConfig(min_mention=0), {}, 3, max_tries=4)
    producer.setup()
    tally = Tally()
    first, short, last = producer.produce(0, tally)
    assert isinstance(first, Caption) and isinstance(last, Caption)
    assert (first.text, last.text) == ('A fox, "asleep", in the snow', texts[2])
    assert (first.ordinal, first.source, first.template) == (0, "given", "c")
    assert first.concept == ("" if suffix == ".txt" else "fox")
    assert isinstance(short, Failure) and short.reason == "drop_too_short"
    assert tally.as_dict() == {"drop_too_short": 1, "tokens": 0}, "no second try"


def test_a_caption_of_several_lines_is_one_caption(tmp_path: Path) -> None:
    text = "A red fox lies asleep beside an old stone wall,\r\n and snow   falls.\n"
    given = FilePrompts.open(write(tmp_path / "given.parquet", [text]))
    producer = CaptionProducer(given, None, FilterConfig(min_mention=0), {}, 1, max_tries=1)
    (caption,) = producer.produce(0, Tally())
    assert isinstance(caption, Caption)
    assert caption.text == "A red fox lies asleep beside an old stone wall, and snow falls"


@pytest.mark.parametrize("column", ["text", "concept"])
def test_captions_that_are_no_text_are_said_in_a_sentence(tmp_path: Path, column: str) -> None:
    columns = {"text": ["A fox"], "concept": ["fox"], column: [["a", "list"]]}
    path = str(tmp_path / "given.parquet")
    pq.write_table(pa.table(columns), path)
    with pytest.raises(ConfigError, match=rf"column '{column}' holds list.*: expected text"):
        len(FilePrompts.open(path))


def test_a_damaged_page_is_said_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "given.parquet"
    write(path, [f"A fox on hill number {i}" for i in range(99)])
    content = bytearray(path.read_bytes())
    content[4:60] = bytes(56)
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="cannot be read"):
        len(FilePrompts.open(str(path)))


def test_a_file_is_known_by_its_content(tmp_path: Path) -> None:
    one = FilePrompts.open(write(tmp_path / "a.txt", ["a", "b"])).digests()
    assert one == FilePrompts.open(write(tmp_path / "b.txt", ["a", "b"])).digests()
    assert one != FilePrompts.open(write(tmp_path / "a.txt", ["a", "c"])).digests()


def test_files_that_hold_no_captions(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"captions_file.*absent\.csv.*no such file"):
        FilePrompts.open(str(tmp_path / "absent.csv"))
    (tmp_path / "a.csv").write_text("url,title\n1,2\n")
    with pytest.raises(ConfigError, match=r"columns url, title: expected one .* 'caption'"):
        len(FilePrompts.open(str(tmp_path / "a.csv")))
    (tmp_path / "a.parquet").write_text("url,title\n1,2\n")
    with pytest.raises(ConfigError, match=r"a\.parquet' cannot be read"):
        len(FilePrompts.open(str(tmp_path / "a.parquet")))
