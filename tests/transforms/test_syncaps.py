"""The paper's concept lists, as they are in the repository."""

import random
from collections import Counter, defaultdict

import pytest
from scipy.stats import chisquare

from tests.support.paths import PIPELINE_DATA
from transforms.captions.prompts import ConceptSampler
from transforms.concepts.lists import ConceptList, read_list

SYNCAPS = PIPELINE_DATA / "concepts/syncaps.yaml"
IMAGENET_PLACES = PIPELINE_DATA / "concepts/imagenet-places.yaml"
SHARES = {
    "imagenet-1k": 0.47,
    "aircraft": 0.05,
    "cars": 0.05,
    "food": 0.05,
    "flowers": 0.03,
    "places": 0.09,
    "textures": 0.002,
}
"""Of the paper's table; ImageNet-21k, Caltech-101 and Pets have 0.26 together."""


@pytest.fixture(scope="module")
def syncaps() -> ConceptList:
    return read_list(str(SYNCAPS))


def test_sources_have_the_paper_s_shares(syncaps: ConceptList) -> None:
    shares: dict[str, float] = defaultdict(float)
    for concept in syncaps.concepts:
        shares[concept.source] += concept.weight
    for source, share in SHARES.items():
        assert shares[source] == pytest.approx(share / 1.002)
    rest = sum(shares[source] for source in ("imagenet-12k", "pets", "caltech"))
    assert rest == pytest.approx(0.26 / 1.002)


def test_sources_have_their_concepts(syncaps: ConceptList) -> None:
    sizes = Counter(concept.source for concept in syncaps.concepts)
    left_out = Counter(duplicate.source for duplicate in syncaps.duplicates)
    full = {"imagenet-1k": 1000, "aircraft": 100, "cars": 196, "food": 101, "flowers": 102}
    full |= {"textures": 47, "pets": 37}
    assert {source: sizes[source] + left_out[source] for source in full} == full
    assert (sizes["imagenet-1k"], sizes["cars"], sizes["aircraft"]) == (1000, 196, 100)
    assert sizes["places"] > 400 and sizes["imagenet-12k"] > 9500
    kinds = {c.source: c.kind for c in syncaps.concepts if c.kind != "object"}
    assert kinds == {"places": "place", "textures": "texture"}


def test_every_object_has_sixty_backgrounds_and_every_class_a_hypernym(
    syncaps: ConceptList,
) -> None:
    at_least = dict.fromkeys(("aircraft", "cars", "food", "flowers", "pets"), 100)
    for concept in syncaps.concepts:
        wanted = at_least.get(concept.source, 60) if concept.kind == "object" else 0
        assert len(set(concept.backgrounds)) >= wanted, concept.name
        assert concept.source != "imagenet-1k" or concept.hypernym, concept.name


def test_fine_grained_names_have_their_noun(syncaps: ConceptList) -> None:
    for concept in syncaps.concepts:
        if concept.source in ("cars", "aircraft"):
            assert concept.name.endswith((" car", " aircraft")), concept.name


def test_a_million_draws_meet_the_shares(syncaps: ConceptList) -> None:
    sampler, draw = ConceptSampler(syncaps.concepts), random.Random(0).random
    drawn = Counter(id(sampler.at(draw())) for _ in range(1_000_000))
    by_source = Counter[str]()
    expected: dict[str, float] = defaultdict(float)
    for concept in syncaps.concepts:
        by_source[concept.source] += drawn[id(concept)]
        expected[concept.source] += 1e6 * concept.weight
    sources = chisquare([by_source[s] for s in expected], list(expected.values()))
    concepts = chisquare(
        [drawn[id(c)] for c in syncaps.concepts], [1e6 * c.weight for c in syncaps.concepts]
    )
    assert min(sources.pvalue, concepts.pvalue) > 1e-3


def test_the_list_of_table_2_has_the_classes_and_scenes_of_the_paper() -> None:
    classes, places = (
        [c for c in read_list(str(IMAGENET_PLACES)).concepts if c.kind == kind]
        for kind in ("object", "place")
    )
    assert {c.source for c in classes} == {"imagenet-1k"}
    assert {c.source for c in places} == {"places-365"}
    assert len({c.weight for c in classes}) == 1, "the classes have equal shares"
    assert all(c.hypernym and len(c.backgrounds) >= 30 for c in classes)
    # The paper: joining ImageNet's and Places' classes gives 365k different captions at most.
    assert len(classes) * len(places) == 365_000


def test_few_classes_of_imagenet_have_the_general_list(syncaps: ConceptList) -> None:
    caltech = next(c for c in syncaps.concepts if c.source == "caltech")
    general = Counter(c.source for c in syncaps.concepts if c.backgrounds == caltech.backgrounds)
    assert general == {"caltech": 65, "imagenet-12k": 262}
