"""Captions per second of the whole captions stage, compared with a bare `LLM.generate`.

    python -m benchmarks.captions_stage [--captions 320] [--repeats 3] [CONFIG] [key=value ...]

Both use the same loaded vLLM, prompts and seeds, one call per shard, and take turns in one process,
each starting with an empty prefix cache. The bare loop discards its output; the stage runs on Beam,
builds prompts, cleans, filters, publishes and commits. Each ordinal is tried once, since the rate
of dropped captions depends on the model. A third measurement is the stage with
`captions.prompts.shared_examples=false`, where each prompt draws its own examples.
"""

import argparse
import statistics
import tempfile
import time
import unittest.mock
from collections.abc import Callable
from typing import Any

from pipelines.captions import CaptionsConfig, engine_spec, prompt_source, run
from transforms.core.config import load_config
from transforms.engines.text.base import TextEngineSpec
from transforms.engines.text.vllm import VllmEngine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--captions", type=int, default=320)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("config", nargs="?", default="pipelines/configs/demo.yaml")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    number = arguments.captions
    fixed = [f"num_captions={number}", f"captions_per_shard={number // 2}"]
    fixed += ["captions.oversampling=1", "captions.max_tries=1", "engine.name=vllm", "run=unused"]
    shared = load_config(CaptionsConfig, arguments.config, [*arguments.overrides, *fixed])
    own_examples = "captions.prompts.shared_examples=false"
    alone = load_config(
        CaptionsConfig, arguments.config, [*arguments.overrides, *fixed, own_examples]
    )
    engine = engine_spec(shared, shared.captions.sampling).open()
    assert isinstance(engine, VllmEngine)
    ways: dict[str, Callable[[], float]] = {
        "bare": lambda: _bare(engine, shared),
        "stage": lambda: _stage(engine, shared),
        "independent": lambda: _stage(engine, alone),
    }
    # Warm up with a small run of each: first calls are not typical of a long run.
    few = shared.model_copy(update={"num_captions": 4, "captions_per_shard": 4})
    _bare(engine, few)
    _stage(engine, few)
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(arguments.repeats):
        for name, seconds in ways.items():
            rates[name].append(number / seconds())
        latest = ", ".join(f"{name} {rate[-1]:.2f}" for name, rate in rates.items())
        print(f"turn {turn}: captions/s: {latest}", flush=True)
    medians = ", ".join(f"{name} {statistics.median(rate):.2f}" for name, rate in rates.items())
    print(
        f"{number} captions in two shards, medians of {arguments.repeats}: captions/s: {medians}; "
        f"of a turn: stage over bare {_ratio(rates['stage'], rates['bare']):.3f}, "
        f"shared over independent {_ratio(rates['stage'], rates['independent']):.2f}"
    )


def _ratio(ours: list[float], theirs: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def _bare(engine: VllmEngine, config: CaptionsConfig) -> float:
    """Return the seconds of `LLM.generate` on every prompt; the output is discarded."""
    source = prompt_source(config)
    prompts = [source.build(ordinal) for ordinal in range(config.num_captions)]
    sampling = [engine._sampling_params(prompt.seed) for prompt in prompts]
    llm: Any = engine._llm
    llm.reset_prefix_cache()
    started = time.perf_counter()
    for start in range(0, len(prompts), config.captions_per_shard):
        shard = slice(start, start + config.captions_per_shard)
        texts = [prompt.text for prompt in prompts[shard]]
        llm.generate(texts, sampling[shard], use_tqdm=False)
    return time.perf_counter() - started


def _stage(engine: VllmEngine, config: CaptionsConfig) -> float:
    """Return the seconds of the stage on a new run."""
    engine._llm.reset_prefix_cache()
    with (
        tempfile.TemporaryDirectory() as folder,
        unittest.mock.patch.object(TextEngineSpec, "open", lambda spec: engine),
    ):
        started = time.perf_counter()
        run(config.model_copy(update={"run": folder}), [])
        return time.perf_counter() - started


if __name__ == "__main__":
    main()
