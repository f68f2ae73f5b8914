"""The built-in lists: counts, no duplicates, and what pipelines/data/README.md promises."""

import importlib.util
import re
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.paths import PIPELINE_DATA
from transforms.captions.examples import GROUPS, Group, load_examples, load_relations
from transforms.captions.filters import mentions, words_of

DATA = PIPELINE_DATA
EXAMPLES = load_examples(str(DATA / "examples"))
CAPTIONS = [
    line.partition(" => ")[2] for line in chain.from_iterable(EXAMPLES.lines[g] for g in GROUPS)
]
GROUPED: list[dict[str, Any]] = yaml.safe_load(
    (DATA / "backgrounds" / "imagenet.yaml").read_text(encoding="utf-8")
)["groups"]


VARIATIONS = {
    *("beautiful", "big", "busy", "cute", "empty", "huge", "large", "little", "lonely", "new"),
    *("nice", "old", "pretty", "quiet", "small", "tiny", "black", "blue", "brown", "golden"),
    *("green", "grey", "orange", "pink", "purple", "red", "white", "yellow"),
}
"""Words that do not make another place: a list with "beach" has no "white beach"."""


def lines_of(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if not line.startswith("#")]


def imagenet_facts(name: str) -> list[str]:
    """A file of timm's about ImageNet, read without the seconds that importing timm takes."""
    spec = importlib.util.find_spec("timm")
    assert spec is not None and spec.origin is not None
    path = Path(spec.origin).parent / "data" / "_info" / name
    return path.read_text(encoding="utf-8").splitlines()


def repeated(names: list[str]) -> list[str]:
    """What stands there twice; neither case nor punctuation nor spaces count."""
    counts = Counter(re.sub(r"\W", "", name.casefold()) for name in names)
    return [name for name, count in counts.items() if count > 1]


@pytest.mark.parametrize(
    ("group", "count"),
    [("objects", 52), ("places", 33), ("textures", 21), ("background", 50), ("relation", 20)],
)
def test_examples_show_what_a_caption_is(group: Group, count: int) -> None:
    lines = EXAMPLES.lines[group]
    assert len(lines) == count
    for line in lines:
        query, _, caption = line.partition(" => ")
        concept, _, context = query.partition(", ")
        assert mentions(caption, concept, share=1.0), line
        assert 8 <= len(words_of(caption)) <= 35, line
        assert "=>" not in caption and not re.search(r"^[\"'“‘]|[\"'”’]$", caption), line
        if group == "background":
            assert mentions(caption, context, share=1.0), line
        if group == "relation":
            assert f" {context} " in caption, line


def test_examples_show_each_relation_twice() -> None:
    shown = Counter(
        line.partition(" => ")[0].partition(", ")[2] for line in EXAMPLES.lines["relation"]
    )
    assert shown == dict.fromkeys(load_relations(str(DATA / "relations.yaml")), 2)


def test_no_two_examples_are_alike() -> None:
    owners: dict[tuple[str, ...], str] = {}
    for caption in CAPTIONS:
        words = words_of(caption)
        for run in zip(*(words[i:] for i in range(4)), strict=False):
            assert owners.setdefault(run, caption) == caption, (run, caption, owners[run])
    assert repeated(CAPTIONS) == []
    openings = Counter(words_of(caption)[0] for caption in CAPTIONS)
    assert openings.most_common(1)[0][1] < 0.3 * len(CAPTIONS)
    lengths = sorted(len(words_of(caption)) for caption in CAPTIONS)
    assert lengths[len(lengths) // 10] <= 11 and lengths[-len(lengths) // 10] >= 24


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("aircraft", 100),
        ("caltech", 96),
        ("cars", 196),
        ("flowers", 102),
        ("food", 101),
        ("pets", 37),
        ("places", 439),
        ("places-365", 365),
        ("textures", 47),
    ],
)
def test_concept_lists_are_whole_and_clean(name: str, count: int) -> None:
    names = lines_of(DATA / "concepts" / f"{name}.txt")
    assert len(names) == count
    assert repeated(names) == []
    for concept in names:
        assert 0 < len(concept) <= 80
        assert concept == " ".join(concept.split()) and "_" not in concept
        assert not concept.endswith(("indoor", "outdoor"))


@pytest.mark.parametrize(
    "name", ["aircraft", "birds", "cars", "flowers", "food", "general", "pets"]
)
def test_places_of_a_kind_of_thing(name: str) -> None:
    check_places(lines_of(DATA / "backgrounds" / f"{name}.txt"), at_least=100)


def check_places(places: list[str], at_least: int) -> None:
    assert len(places) >= at_least
    assert repeated([re.sub(r"^(a|an|the) ", "", place.casefold()) for place in places]) == []
    alike: dict[frozenset[str], str] = {}
    for place in places:
        words = frozenset(words_of(place)) - VARIATIONS
        assert words, place
        assert alike.setdefault(words, place) == place, (place, alike[words])
    for place in places:
        assert place == " ".join(place.split())
        assert 0 < len(words_of(place)) <= 8, place
        # They stand behind a comma in the prompt and are no sentences.
        assert not re.search(r"[,;:.=]|^(a|an|the|in|on|at) ", place), place


@pytest.mark.parametrize("group", GROUPED, ids=lambda group: group["name"])
def test_places_of_a_group_of_imagenet(group: dict[str, Any]) -> None:
    check_places(group["places"], at_least=60)
    assert group["ancestor"]


def test_each_class_of_imagenet_is_in_one_group() -> None:
    classes = [synset for group in GROUPED for synset in group["classes"]]
    assert sorted(classes) == sorted(imagenet_facts("imagenet_synsets.txt"))
    assert repeated([group["name"] for group in GROUPED]) == []


def test_relatives_of_the_classes_of_imagenet_are_in_groups_that_exist() -> None:
    rows = [line.split("\t") for line in lines_of(DATA / "backgrounds" / "imagenet-12k.tsv")]
    relatives = dict(rows)
    assert len(rows) == len(relatives) > 9500
    subset = set(imagenet_facts("imagenet12k_synsets.txt"))
    assert set(relatives) <= subset - set(imagenet_facts("imagenet_synsets.txt"))
    names = {group["name"] for group in GROUPED}
    assert set(relatives.values()) <= names
    used = set(relatives.values()) | {group["name"] for group in GROUPED if group["classes"]}
    assert used == names


def test_each_class_of_imagenet_has_a_hypernym() -> None:
    rows = [line.split("\t") for line in lines_of(DATA / "concepts" / "imagenet-hypernyms.tsv")]
    hypernyms = dict(rows)
    assert len(rows) == len(hypernyms)
    assert set(hypernyms) == set(imagenet_facts("imagenet_synsets.txt"))
    lemmas = dict(line.split("\t") for line in imagenet_facts("imagenet_synset_to_lemma.txt"))
    for synset, hypernym in hypernyms.items():
        assert hypernym not in lemmas[synset].split(", ")
        assert 0 < len(hypernym) <= 80
