from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.engines.text import Completion, EngineError, complete_each


class TouchyEngine:
    """Echoes its prompts, and raises when one of them is poison; then it must be restarted."""

    def __init__(self, dead: bool = False, restarts: bool = True) -> None:
        self.dead = dead
        self.restarts = restarts
        self.broken = False
        self.num_restarts = 0
        self.num_calls = 0

    def complete(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Completion]:
        assert not self.broken, "used without a restart"
        self.num_calls += 1
        if self.dead or "poison" in prompts:
            self.broken = True
            raise ValueError("it hurts")
        return [Completion(f"{p} {s}", True, 1) for p, s in zip(prompts, seeds, strict=True)]

    def restart(self) -> None:
        if not self.restarts:
            raise RuntimeError("no device")
        self.num_restarts += 1
        self.broken = False


def test_without_failures_everything_is_one_call() -> None:
    engine = TouchyEngine()
    completions = complete_each(engine, ["a", "b"], [1, 2])
    assert [c.text for c in completions] == ["a 1", "b 2"]
    assert engine.num_calls == 1
    assert complete_each(engine, [], []) == []


@given(st.integers(1, 200), st.data())
def test_poison_costs_its_own_completion_only(number: int, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, number - 1))
    prompts = [f"p{i}" for i in range(number)]
    prompts[place] = "poison"
    engine = TouchyEngine()
    completions = complete_each(engine, prompts, list(range(number)))
    assert [i for i, c in enumerate(completions) if c.error] == [place]
    assert completions[place].error == "ValueError: it hurts"
    assert all(c.text == f"p{i} {i}" for i, c in enumerate(completions) if i != place)
    assert engine.num_restarts <= number.bit_length() + 1


def test_several_poisonous_prompts() -> None:
    prompts = ["poison" if i in (0, 1, 40, 99) else "p" for i in range(100)]
    completions = complete_each(TouchyEngine(), prompts, [0] * 100)
    assert [i for i, c in enumerate(completions) if c.error] == [0, 1, 40, 99]


def test_a_dead_engine_stops_soon() -> None:
    engine = TouchyEngine(dead=True)
    with pytest.raises(EngineError, match=r"whatever it is asked.*it hurts.*committed is kept"):
        complete_each(engine, ["p"] * 10_000, [0] * 10_000)
    assert engine.num_restarts <= 5


def test_an_engine_that_does_not_restart_stops_at_once() -> None:
    with pytest.raises(EngineError, match="cannot be restarted: RuntimeError: no device"):
        complete_each(TouchyEngine(restarts=False), ["p", "poison"], [0, 0])
