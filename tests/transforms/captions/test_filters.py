from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.captions.filters import (
    FilterConfig,
    Phrases,
    base_forms,
    clean,
    drop_reason,
    load_block_list,
    mentions,
    words_of,
)
from transforms.core.counters import Count
from transforms.core.errors import ConfigError
from transforms.core.records import Concept, Prompt

EXAMPLE = "fox => A young fox with bright orange fur looks up from the frozen grass in the morning"
FILTERS = FilterConfig()
NONE_BLOCKED: Phrases = {}


def prompt(name: str = "kettle") -> Prompt:
    concept = Concept(name, "things", "object", 1.0, ())
    text = f"Describe a picture of each thing in one sentence.\n{EXAMPLE}\n{name} =>"
    return Prompt(0, concept, "c", None, None, text, 0)


def reason(
    caption: str, name: str = "kettle", finished: bool = True, blocked: Phrases = NONE_BLOCKED
) -> Count | None:
    return drop_reason(caption, finished, prompt(name), FILTERS, blocked)


@pytest.mark.parametrize(
    ("text", "caption"),
    [
        ("  A kettle on a stove.\nfox => A fox", "A kettle on a stove"),
        ('"A kettle on a stove."', "A kettle on a stove"),
        ("“A kettle” on a stove", "“A kettle” on a stove"),
        ('"A kettle on a stove', "A kettle on a stove"),
        ("- A kettle  on\ta stove", "A kettle on a stove"),
        ("1. A kettle", "A kettle"),
        ("=> A kettle", "A kettle"),
        ("A kettle. It steams.", "A kettle. It steams."),
        ("A kettle that says 'hi'", "A kettle that says 'hi'"),
        ("5 kettles", "5 kettles"),
        ("-20 degrees", "-20 degrees"),
        ("Cafe\u0301", "Café"),
        ("A kettle steams. A kettle steams. A kettle", "A kettle steams. A kettle"),
        ("It steams! A kettle. It steams", "It steams! A kettle"),
        ("A mug of A. A. Milne", "A mug of A. A. Milne"),
        ("...", "..."),
        ("", ""),
        ("\n\n", ""),
    ],
)
def test_cleaning(text: str, caption: str) -> None:
    assert clean(text, finished=True) == caption


@pytest.mark.parametrize(
    ("text", "caption"),
    [
        ("A kettle. It stands on a", "A kettle"),
        ("A kettle. It steams! Behind it is", "A kettle. It steams!"),
        ("A kettle of 3.5 litres on a", "A kettle of 3.5 litres on a"),
        ("黒い猫が寝る。外は雨", "黒い猫が寝る。外は雨"),
    ],
)
def test_an_unfinished_caption_ends_with_its_last_whole_sentence(text: str, caption: str) -> None:
    assert clean(text, finished=False) == caption


@given(st.text(max_size=80), st.booleans())
def test_clean_captions_are_one_trimmed_line(text: str, finished: bool) -> None:
    caption = clean(text, finished)
    assert caption == " ".join(caption.split())
    assert len(caption.splitlines()) <= 1


@given(st.text(max_size=80), st.text(min_size=1, max_size=20), st.booleans())
def test_any_text_has_a_verdict(text: str, name: str, finished: bool) -> None:
    caption = clean(text, finished)
    verdict = reason(caption, name.replace("\n", " "), finished)
    assert verdict is None or str(verdict).startswith("drop_")


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A dented kettle steams on an old stove", None),
        ("", Count.DROP_EMPTY),
        ("?!", Count.DROP_NON_TEXT),
        ("kettle 1234567890 99 0 0 0 0 12", Count.DROP_NON_TEXT),
        ("A kettle at https://kettles.example/", Count.DROP_NON_TEXT),
        ("A <b>kettle</b> on a stove", Count.DROP_NON_TEXT),
        ("A kettle \ufffd on a stove", Count.DROP_NON_TEXT),
        ("A kettle", Count.DROP_TOO_SHORT),
        ("A kettle => a stove", Count.DROP_PROMPT_LEAKED),
        (
            "A kettle with bright orange fur looks up from the frozen grass",
            Count.DROP_PROMPT_LEAKED,
        ),
        ("A kettle kettle kettle on a stove", Count.DROP_REPEATED),
        ("A kettle on a hot stove and a kettle on a hot stove", Count.DROP_REPEATED),
        ("A pot of tea on an old stove", Count.DROP_CONCEPT_MISSING),
        ("A news item about kettledrums", Count.DROP_CONCEPT_MISSING),
    ],
)
def test_reasons(caption: str, expected: Count | None) -> None:
    assert reason(caption) == expected


def test_limits_of_length() -> None:
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [a + b for a in letters for b in letters][: FILTERS.max_words]
    assert reason(" ".join(["kettle", *words[1:]])) is None
    assert reason(" ".join(["kettle", *words])) is Count.DROP_TOO_LONG
    assert reason("A kettle that stands on a", finished=False) is Count.DROP_TOO_LONG
    assert reason("A kettle steams. It is old.", finished=False) is None


@pytest.mark.parametrize(
    ("name", "caption"),
    [
        ("fox", "Two foxes in the snow"),
        ("knife", "Rusty knives in a drawer"),
        ("glove", "Woollen gloves"),
        ("leaf", "Leaves on a pond"),
        ("shoe", "Old shoes"),
        ("bus", "Red buses in a row"),
        ("cherry", "A bowl of cherries"),
        ("mouse", "Three mice under a table"),
        ("cactus", "Cacti in a desert"),
        ("scissors", "A pair of scissors"),
        ("grapes", "A single grape"),
        ("dog", "The dog's bowl"),
        ("axe", "Two axes lean on a wall"),
        ("T-shirt", "a t shirt on a line"),
        ("hot dog", "A hotdog with mustard"),
        ("hotdog", "A hot dog with mustard"),
        ("café", "The cafe at noon"),
        ("crème brûlée", "A creme brulee in a small dish"),
        ("jack-o'-lantern", "A jack-o’-lantern glows"),
        ("Boeing 737 (aircraft)", "A Boeing 737 lands"),
        ("lily of the valley", "A lily in a green valley"),
        ("cocker spaniel", "A spaniel, a cocker by its ears"),
        ("green mountain bicycle", "A mountain bicycle"),
        ("猫", "黒い猫が寝る"),
        ("🦊", "A small 🦊 in the snow"),
        ("X", "A large X on a wall"),
        ("С-300", "С-300 на параде"),
        ("crane (machine)", "Two cranes above a harbour"),
        ("Audi TT RS Coupe 2012 car", "A red Audi TT RS on a wet road"),
        ("BMW M3 Coupe 2012 car", "A BMW M3 at night"),
        ("Boeing 737-300 aircraft", "A Boeing 737 lands"),
        ("streetcar", "Two streetcars in the rain"),
        ("alga", "Algae on a rock"),
        ("matrix", "Matrices on a blackboard"),
    ],
)
def test_a_concept_is_recognised(name: str, caption: str) -> None:
    assert mentions(caption, name, FILTERS.min_mention)


@pytest.mark.parametrize(
    ("name", "caption"),
    [
        ("cat", "A category of things"),
        ("newt", "News from the pond"),
        ("golden retriever", "A retriever on a sofa"),
        ("bass", "A bas relief"),
        ("glass", "A gla of water"),
        ("犬", "黒い猫が寝る"),
        ("🦊", "A small 🐻 in the snow"),
        ("X", "A large box"),
        ("freight car", "A freight yard"),
        ("Audi TT RS Coupe 2012 car", "A red car of 2012"),
        ("1900 coin", "A house of 1900"),
    ],
)
def test_another_concept_is_not(name: str, caption: str) -> None:
    assert not mentions(caption, name, FILTERS.min_mention)


def test_blocked_words_and_phrases(tmp_path: Path) -> None:
    path = tmp_path / "blocked.txt"
    path.write_text("# Not for us.\ngun\n\nNo. Entry sign\ngun dog\n", encoding="utf-8")
    blocked = load_block_list(str(path))
    for caption, is_blocked in {
        "A kettle beside two guns": True,
        "A gun dog and a kettle": True,
        "A kettle by a no entry sign": True,
        "A kettle below no-entry signs": True,
        "A kettle of a gunner by no entry": False,
        "A kettle by a sign": False,
    }.items():
        assert reason(caption, blocked=blocked) is (Count.DROP_BLOCKED if is_blocked else None)
        assert reason(caption) is None


def test_wrong_block_lists(tmp_path: Path) -> None:
    assert load_block_list(None) == {}
    with pytest.raises(ConfigError, match=r"filters\.block_list.*absent.*cannot be read"):
        load_block_list(str(tmp_path / "absent"))
    path = tmp_path / "blocked.txt"
    path.write_text("gun\n?!\n")
    with pytest.raises(ConfigError, match=r"line '\?!' contains no word"):
        load_block_list(str(path))


def test_words_and_forms() -> None:
    words = ["the", "fox's", "den", "3rd", "of", "may", "café"]
    assert words_of("The fox's den, 3rd of May: café") == words
    assert words_of("黒い猫") == ["黒", "い", "猫"]
    assert "glass" in base_forms("glass") and "glas" not in base_forms("glass")
