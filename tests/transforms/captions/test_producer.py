import pickle
from collections.abc import Callable, Iterator, Sequence

import pytest

from tests.support.prompts import CONCEPTS, EXAMPLES, RELATIONS, SPEC
from transforms.captions.filters import FilterConfig
from transforms.captions.producer import CaptionProducer
from transforms.captions.prompts import PromptBuilder, PromptConfig
from transforms.core.counters import Count, Tally
from transforms.core.records import Caption, Failure
from transforms.core.seeding import caption_id
from transforms.core.stages import Produced
from transforms.engines.text.base import Completion

SIZE = 20
Answer = Callable[[str, int, int], Completion]
"""(last concept in the prompt, position in the call, number of the call) -> completion."""


class ScriptedEngine:
    """An engine with scripted answers, which records its calls."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.calls: list[tuple[list[str], list[int]]] = []

    def complete(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Completion]:
        self.calls.append((list(prompts), list(seeds)))
        concepts = [p.splitlines()[-1].removesuffix(" =>").split(", ")[0] for p in prompts]
        return [self.answer(c, i, len(self.calls)) for i, c in enumerate(concepts)]

    def restart(self) -> None:
        pass


def good(concept: str, place: int, call: int) -> Completion:
    return Completion(f"A {concept} on shelf {call}{chr(97 + place)}.", True, 7)


def producer(engine: ScriptedEngine, max_tries: int = 3) -> CaptionProducer:
    builder = PromptBuilder(CONCEPTS, EXAMPLES, RELATIONS, PromptConfig(), 0, SIZE)
    made = CaptionProducer(builder, SPEC, FilterConfig(), {}, SIZE, max_tries)
    made._engine = engine
    return made


def produce(
    answer: Answer, shard: int = 2, max_tries: int = 3
) -> tuple[list[Produced], Tally, ScriptedEngine]:
    engine, tally = ScriptedEngine(answer), Tally()
    made = producer(engine, max_tries)
    results = list(made.produce(shard, tally))
    ids = [r.record_id if isinstance(r, Failure) else str(r.ordinal) for r in captions(results)]
    assert ids == made.record_ids(shard)
    return results, tally, engine


def captions(results: Sequence[Produced]) -> Iterator[Caption | Failure]:
    for result in results:
        assert isinstance(result, Caption | Failure)
        yield result


def test_a_shard_is_one_call_and_owns_its_ordinals() -> None:
    results, tally, engine = produce(good, shard=3)
    assert len(engine.calls) == 1
    assert [c.ordinal for c in captions(results) if isinstance(c, Caption)] == list(range(60, 80))
    assert tally.as_dict() == {"tokens": 7 * SIZE}
    for result in captions(results):
        assert isinstance(result, Caption)
        assert result.text.endswith(tuple("abcdefghijklmnopqrst")), "no full stop"
        assert result.caption_id == caption_id(result.text)
        assert result.concept in result.text
        assert result.source in ("animals", "things", "places", "textures")


def test_shards_do_not_overlap() -> None:
    made = producer(ScriptedEngine(good))
    ids = [record_id for shard in range(5) for record_id in made.record_ids(shard)]
    assert ids == [str(i) for i in range(5 * SIZE)]


def test_dropped_ordinals_are_asked_again_with_fresh_seeds() -> None:
    def answer(concept: str, place: int, call: int) -> Completion:
        bad = call == 1 and place < 5
        return Completion("", True, 0) if bad else good(concept, place, call)

    results, tally, engine = produce(answer)
    assert all(isinstance(r, Caption) for r in results)
    (prompts, seeds), (again, new_seeds) = engine.calls
    assert again == prompts[:5]
    assert not set(new_seeds) & set(seeds)
    counts = tally.as_dict()
    assert (counts["drop_empty"], counts["retries"]) == (5, 5)


def test_what_never_becomes_a_caption_is_a_dead_letter_with_its_last_reason() -> None:
    def answer(concept: str, place: int, call: int) -> Completion:
        if place == 0:
            text = "" if call < 3 else "A stone with moss on it"
            return Completion(text, True, 1)
        return good(concept, place, call)

    results, tally, engine = produce(answer)
    failures = [r for r in results if isinstance(r, Failure)]
    assert [f.record_id for f in failures] == [str(2 * SIZE)]
    assert failures[0].reason == "drop_concept_missing"
    assert failures[0].detail.endswith("=> A stone with moss on it")
    assert len(engine.calls) == 3
    assert len({seed for _, seeds in engine.calls for seed in seeds[:1]}) == 3
    counts = tally.as_dict()
    assert (counts["drop_empty"], counts["drop_concept_missing"], counts["retries"]) == (2, 1, 2)


def test_what_the_engine_refuses_is_not_asked_again() -> None:
    def answer(concept: str, place: int, call: int) -> Completion:
        if place == 4:
            return Completion("", False, 0, "the prompt is too long")
        return good(concept, place, call)

    results, tally, engine = produce(answer)
    assert len(engine.calls) == 1
    failure = results[4]
    assert isinstance(failure, Failure)
    assert (failure.reason, failure.detail) == (Count.ENGINE_ERROR, "the prompt is too long")
    assert tally.as_dict()["engine_error"] == 1


def test_loading_a_model_is_said_with_its_name(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("transforms.engines.text.vllm.VllmEngine", lambda *_: ScriptedEngine(good))
    with caplog.at_level("INFO", "transforms"):
        SPEC.open()
    assert caplog.messages == ["loading none", "none is ready after 0 s"]


def test_a_producer_pickles_before_and_holds_no_model() -> None:
    builder = PromptBuilder(CONCEPTS, EXAMPLES, RELATIONS, PromptConfig(), 0, SIZE)
    made = CaptionProducer(builder, SPEC, FilterConfig(), {}, SIZE, 3)
    again = pickle.loads(pickle.dumps(made))
    assert again.record_ids(7) == made.record_ids(7)
    with pytest.raises(AssertionError, match="setup"):
        list(again.produce(0, Tally()))
