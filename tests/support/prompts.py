"""Concepts, examples and an engine's settings for tests of captions."""

from tests.support.paths import PIPELINE_DATA
from transforms.captions.examples import load_examples, load_relations
from transforms.core.records import Concept
from transforms.engines.model_refs import Model
from transforms.engines.text.base import SamplingConfig, TextEngineSpec
from transforms.engines.text.vllm import VllmConfig

EXAMPLES = load_examples(str(PIPELINE_DATA / "examples"))
RELATIONS = load_relations(str(PIPELINE_DATA / "relations.yaml"))
CONCEPTS = (
    Concept("fox", "animals", "object", 0.5, ("forest", "meadow", "snow")),
    Concept("kettle", "things", "object", 0.25, ()),
    Concept("harbour", "places", "place", 0.15, ("ignored",)),
    Concept("marble", "textures", "texture", 0.1, ()),
)
SPEC = TextEngineSpec(Model("none", None, "none"), VllmConfig(), SamplingConfig())


def chi_square(counts: list[int], shares: list[float]) -> float:
    """Return the chi-square statistic of counts that should have these shares of their sum."""
    total = sum(counts)
    return sum((c - total * s) ** 2 / (total * s) for c, s in zip(counts, shares, strict=True))
