import pickle
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.paths import PIPELINE_DATA
from tests.support.prompts import SPEC
from transforms.captions.backgrounds import (
    BackgroundProducer,
    BackgroundsConfig,
    drop_reason,
    items_of,
    load_things,
    with_run_backgrounds,
)
from transforms.captions.filters import words_of
from transforms.core.commit import ShardBuild
from transforms.core.counters import Count, Tally
from transforms.core.errors import ConfigError, DamagedFileError, MissingFileError
from transforms.core.index import write_index
from transforms.core.records import Backgrounds, Concept, Failure
from transforms.core.stages import stage_folder
from transforms.engines.text.base import Completion

THINGS = tuple(f"thing {i} => shelf {i}, table {i}" for i in range(6))
CONCEPTS = tuple(Concept(name, "animals", "object", 0.2, ("zoo",)) for name in ("fox", "owl", "ox"))
HARBOUR = Concept("harbour", "scenes", "place", 0.4, ())
CONFIG = BackgroundsConfig(places_per_concept=4, min_places=2, max_tries=3, concepts_per_shard=2)
Answer = Callable[[str, int], str]
"""(concept of the prompt, number of the call) -> text that the model writes."""


class ScriptedEngine:
    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.calls: list[tuple[list[str], list[int]]] = []

    def complete(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Completion]:
        self.calls.append((list(prompts), list(seeds)))
        asked = [prompt.splitlines()[-1].removesuffix(" =>") for prompt in prompts]
        texts = [self.answer(concept, len(self.calls)) for concept in asked]
        return [Completion(text, True, 9, "too long" if not text else None) for text in texts]

    def restart(self) -> None:
        pass


def producer(answer: Answer) -> tuple[BackgroundProducer, ScriptedEngine]:
    made = BackgroundProducer((*CONCEPTS, HARBOUR), THINGS, SPEC, CONFIG, seed=0)
    made._engine = engine = ScriptedEngine(answer)
    return made, engine


def done(text: str) -> Completion:
    return Completion(text, True, 9)


def test_items_come_out_without_decoration() -> None:
    text = (
        ' in a wood, 2. on the barn; and at home,"by a beach",, - in a café near St. Malo. In bed.'
    )
    assert items_of(done(text)) == [
        "in a wood",
        "on the barn",
        "and at home",
        "by a beach",
        "in a café near St. Malo",
        "In bed",
    ]


def test_an_item_that_was_cut_off_is_left_out() -> None:
    assert items_of(replace(done("in a barn, in a mead"), finished=False)) == ["in a barn"]
    assert items_of(replace(done("in a mead"), finished=False)) == []


@settings(deadline=None)
@given(st.text(max_size=60), st.booleans())
def test_whatever_a_model_writes_gives_single_trimmed_lines(text: str, finished: bool) -> None:
    for place in items_of(replace(done(text), finished=finished)):
        assert place and place == " ".join(place.split())
        assert not set(place) & set(",;|\n")


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("snowy forest edge", None),
        ("fox den", None),
        ("St. John's harbour", None),
        ("1950s diner", None),
        ("公园", None),
        ("Foxes", Count.DROP_NAMES_CONCEPT),
        ("red fox's", None),
        ("churchyard churchyard", Count.DROP_REPEATED),
        ("beach beaches", Count.DROP_REPEATED),
        ("!!", Count.DROP_NON_TEXT),
        ("http://fox.example", Count.DROP_NON_TEXT),
        ("barn => a barn", Count.DROP_NON_TEXT),
        ("a place where one may see it at night", Count.DROP_TOO_LONG),
    ],
)
def test_what_is_no_place_is_dropped(place: str, reason: Count | None) -> None:
    assert drop_reason(place, "fox", 7) == reason


def test_each_concept_is_asked_until_it_has_enough() -> None:
    def answer(concept: str, call: int) -> str:
        if concept == "fox":
            return "in a barn, in the Fens, and on a moor, inside the old wood, on hills"
        return f"in a barn, at the barn, cow, by an oak {call}"

    made, engine = producer(answer)
    tally = Tally()
    assert made.produce(0, tally) == [
        Backgrounds("animals", "fox", ("barn", "Fens", "moor", "old wood")),
        Backgrounds("animals", "owl", ("barn", "oak 1", "oak 2", "oak 3")),
    ]
    assert [len(prompts) for prompts, _ in engine.calls] == [2, 1, 1]
    assert tally.as_dict() == {
        "drop_no_place": 3,
        "drop_repeated": 5,
        "retries": 2,
        "tokens": 36,
    }


def test_the_end_of_a_long_answer_is_not_read() -> None:
    long = ", ".join(f"in a wood {i}" for i in range(9))
    config = CONFIG.model_copy(update={"places_per_concept": 9, "places_per_answer": 3})
    made = BackgroundProducer(CONCEPTS, THINGS, SPEC, config, seed=0)
    made._engine = ScriptedEngine(lambda concept, call: long)
    (ox,) = made.produce(1, Tally())
    assert ox == Backgrounds("animals", "ox", ("wood 0", "wood 1", "wood 2"))


def test_a_concept_with_hardly_any_place_or_an_error_is_a_dead_letter() -> None:
    made, engine = producer(lambda concept, call: "in a barn" if concept == "fox" else "")
    tally = Tally()
    few, failed = made.produce(0, tally)
    assert few == Failure("animals/fox", "drop_too_few_places", "1 places: barn")
    assert failed == Failure("animals/owl", "engine_error", "too long")
    assert [len(prompts) for prompts, _ in engine.calls] == [2, 1, 1], "failures are final"
    assert made.record_ids(0) == ["animals/fox", "animals/owl"]


def test_places_found_before_an_error_are_kept() -> None:
    made, engine = producer(lambda concept, call: "in a barn, on a moor" if call == 1 else "")
    tally = Tally()
    assert made.produce(1, tally) == [Backgrounds("animals", "ox", ("barn", "moor"))]
    assert [len(prompts) for prompts, _ in engine.calls] == [1, 1]
    assert "engine_error" not in tally.as_dict()


def test_objects_only_are_asked_about_and_shards_share_none() -> None:
    made, _ = producer(lambda concept, call: "barn, fen, moor, wood")
    assert made.record_ids(0) + made.record_ids(1) == ["animals/fox", "animals/owl", "animals/ox"]
    assert made.record_ids(2) == []
    again = pickle.loads(pickle.dumps(BackgroundProducer(CONCEPTS, THINGS, SPEC, CONFIG, 0)))
    assert again.record_ids(1) == ["animals/ox"]


def test_a_prompt_depends_on_seed_concept_and_try_alone() -> None:
    made, engine = producer(lambda concept, call: "barn")
    made.produce(0, Tally())
    prompts = [prompt for asked, _ in engine.calls for prompt in asked]
    seeds = [seed for _, given in engine.calls for seed in given]
    assert len(set(seeds)) == len(seeds) == 6
    assert prompts == [made.prompt(c, attempt) for attempt in range(3) for c in CONCEPTS[:2]]
    for prompt in prompts:
        _, *shown, last = prompt.splitlines()
        assert len(set(shown)) == 3 and set(shown) <= set(THINGS)
        assert last.endswith(" =>") and not last.startswith("thing")
    # Every example is used, in every position.
    many = [made.prompt(CONCEPTS[0], attempt).splitlines()[1:4] for attempt in range(200)]
    assert all({lines[place] for lines in many} == set(THINGS) for place in range(3))


def write(run: str, records: list[Backgrounds | Failure]) -> None:
    folder = stage_folder(run, "backgrounds")
    with ShardBuild(folder, 0) as build:
        build.write(records)
        ids = [r.record_id for r in records]
        record = build.commit(ids, "fingerprint", Tally())
    assert (record.num_samples, record.num_failures) == (1, len(records) - 1)
    write_index(folder, [record], {})


def test_captions_take_what_a_run_has_found(any_storage: str) -> None:
    found = Backgrounds("animals", "fox", ("den", "café"))
    with pytest.raises(MissingFileError, match="run `python -m pipelines backgrounds`"):
        with_run_backgrounds(CONCEPTS, any_storage)
    write(any_storage, [found, Failure("animals/owl", "drop_too_few_places", "none")])
    fox, owl, ox, harbour = with_run_backgrounds((*CONCEPTS, HARBOUR), any_storage)
    assert fox == replace(CONCEPTS[0], backgrounds=("den", "café"))
    assert (owl, ox, harbour) == (*CONCEPTS[1:], HARBOUR)


def test_a_source_keeps_its_places_if_it_has_any(tmp_path: Path) -> None:
    write(str(tmp_path), [Backgrounds("animals", "fox", ("den",))])
    fox, bare = CONCEPTS[0], replace(CONCEPTS[0], backgrounds=())
    assert with_run_backgrounds((fox,), str(tmp_path), kept={"animals"}) == (fox,)
    for concept, kept in ((fox, {"pets"}), (bare, {"animals"})):
        (changed,) = with_run_backgrounds((concept,), str(tmp_path), kept)
        assert changed.backgrounds == ("den",)


def test_places_are_those_of_the_same_source(tmp_path: Path) -> None:
    """The id of the other concept is the same."""
    write(str(tmp_path), [Backgrounds("a/b", "c", ("den",))])
    other = Concept("b/c", "a", "object", 1.0, ("zoo",))
    assert with_run_backgrounds((other,), str(tmp_path)) == (other,)


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    write(str(tmp_path), [Backgrounds("animals", "fox", ("den",))])
    path = next(tmp_path.rglob("backgrounds-*.parquet"))
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(DamagedFileError, match=path.name):
        with_run_backgrounds(CONCEPTS, str(tmp_path))


def test_our_examples_load_and_too_few_do_not(tmp_path: Path) -> None:
    ours = PIPELINE_DATA / "backgrounds/examples.yaml"
    lines = load_things(str(ours))
    assert len(lines) >= 12
    for line in lines:
        concept, _, places = line.partition(" => ")
        items = items_of(done(places))
        found = [item.split(" ", 1)[1].removeprefix("the ") for item in items]
        assert {item.split(" ")[0] for item in items} <= {"in", "on", "at", "by"}
        assert len(found) >= 10 and len({" ".join(words_of(p)) for p in found}) == len(found)
        assert [drop_reason(place, concept, 7) for place in found] == [None] * len(found)
    few = tmp_path / "few.yaml"
    few.write_text("examples: [{concept: fox, places: [den]}]")
    with pytest.raises(ConfigError, match=r"few\.yaml has 1 examples: expected at least 3"):
        load_things(str(few))


def test_impossible_settings() -> None:
    with pytest.raises(ValueError, match="min_places"):
        BackgroundsConfig(places_per_concept=5, min_places=6)
