import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.caption_filters import (
    FilterConfig,
    base_forms,
    clean,
    drop_reason,
    mentions,
    words_of,
)
from transforms.core.counters import Count
from transforms.core.records import Concept, Prompt

EXAMPLE = "fox => A young fox with bright orange fur looks up from the frozen grass in the morning"
FILTERS = FilterConfig()


def prompt(name: str = "kettle") -> Prompt:
    concept = Concept(name, "things", "object", 1.0, ())
    text = f"Describe a picture of each thing in one sentence.\n{EXAMPLE}\n{name} =>"
    return Prompt(0, concept, "c", None, None, text, 0)


def reason(caption: str, name: str = "kettle", finished: bool = True) -> Count | None:
    return drop_reason(caption, finished, prompt(name), FILTERS)


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
    verdict = drop_reason(caption, finished, prompt(name.replace("\n", " ")), FILTERS)
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
    ],
)
def test_another_concept_is_not(name: str, caption: str) -> None:
    assert not mentions(caption, name, FILTERS.min_mention)


def test_words_and_forms() -> None:
    words = ["the", "fox's", "den", "3rd", "of", "may", "café"]
    assert words_of("The fox's den, 3rd of May: café") == words
    assert words_of("黒い猫") == ["黒", "い", "猫"]
    assert "glass" in base_forms("glass") and "glas" not in base_forms("glass")
