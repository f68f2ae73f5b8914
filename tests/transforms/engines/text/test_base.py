from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.engines.text.base import Completion, EngineError, complete_each


class TouchyEngine:
    """An engine that echoes its prompts, and raises if one of them is "poison".

    Args:
        deadly: True if poison breaks the engine until it is restarted.
        dead: True if the engine always raises.
        restarts: True if a restart works.
        largest: Largest number of prompts that does not break the engine.
    """

    def __init__(
        self,
        *,
        deadly: bool = False,
        dead: bool = False,
        restarts: bool = True,
        largest: int = 10**9,
    ) -> None:
        self.deadly = deadly
        self.dead = dead
        self.restarts = restarts
        self.largest = largest
        self.broken = False
        self.num_restarts = 0
        self.num_calls = 0

    def complete(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Completion]:
        self.num_calls += 1
        if self.broken or self.dead:
            raise RuntimeError("broken")
        if "poison" in prompts or len(prompts) > self.largest:
            self.broken = self.deadly
            raise ValueError("it hurts")
        return [
            Completion("", False, 0, "refused")
            if prompt == "refuse me"
            else Completion(f"{prompt} {seed}", True, 1)
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]

    def restart(self) -> None:
        self.num_restarts += 1
        if not self.restarts:
            raise RuntimeError("no device")
        self.broken = False


def test_without_failures_everything_is_one_call() -> None:
    engine = TouchyEngine()
    completions = complete_each(engine, ["a", "b"], [1, 2])
    assert [c.text for c in completions] == ["a 1", "b 2"]
    assert engine.num_calls == 1
    assert complete_each(engine, [], []) == []


@given(st.integers(1, 200), st.booleans(), st.data())
def test_poison_costs_its_own_completion_only(
    number: int, deadly: bool, data: st.DataObject
) -> None:
    places = sorted(data.draw(st.sets(st.integers(0, number - 1), min_size=1, max_size=3)))
    prompts = ["poison" if i in places else f"p{i}" for i in range(number)]
    engine = TouchyEngine(deadly=deadly)
    completions = complete_each(engine, prompts, list(range(number)))
    assert [i for i, c in enumerate(completions) if c.error] == places
    assert completions[places[0]].error == "ValueError: it hurts"
    assert all(c.text == f"p{i} {i}" for i, c in enumerate(completions) if i not in places)
    most = len(places) * (number.bit_length() + 1)
    assert engine.num_restarts <= (most if deadly else 0)


def test_an_engine_that_is_dead_is_restarted_once() -> None:
    engine = TouchyEngine(dead=True)
    with pytest.raises(EngineError, match=r"died .*when restarted.*broken.*so far is kept"):
        complete_each(engine, ["p"] * 10_000, [0] * 10_000)
    assert (engine.num_restarts, engine.num_calls) == (1, 3)


def test_an_engine_that_does_not_restart_stops_at_once() -> None:
    engine = TouchyEngine(deadly=True, restarts=False)
    with pytest.raises(EngineError, match=r"it hurts.*RuntimeError: no device"):
        complete_each(engine, ["p", "poison"], [0, 0])
    assert engine.num_restarts == 1


def test_an_engine_that_dies_again_and_again_stops_the_run() -> None:
    engine = TouchyEngine(deadly=True, largest=3)
    with pytest.raises(EngineError, match="it died 12 times"):
        complete_each(engine, ["p"] * 1000, [0] * 1000)


def test_an_engine_that_needs_smaller_batches_gets_them() -> None:
    completions = complete_each(TouchyEngine(largest=3), ["p"] * 1000, [0] * 1000)
    assert all(completion.text == "p 0" for completion in completions)


@pytest.mark.parametrize("prompt", ["poison", "refuse me"])
def test_an_engine_that_fails_on_every_prompt_stops_the_run(prompt: str) -> None:
    prompts = [prompt] * 1000
    with pytest.raises(EngineError, match="fails on every prompt"):
        complete_each(TouchyEngine(), prompts, [0] * 1000)
    few = complete_each(TouchyEngine(), ["p", prompt, "p"] * 10, [0] * 30)
    assert [i for i, c in enumerate(few) if c.error] == list(range(1, 30, 3))
