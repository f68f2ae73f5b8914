"""What a stage leaves running when it is killed: nothing."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import PIPELINE_CONFIGS, ROOT
from tests.support.processes import (
    command,
    descendants,
    running,
    shared_memory,
    wait_until_ended,
)
from tests.support.random_llama import write_random_llama


@pytest.mark.xdist_group("models")
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("setting", "process"),
    [
        ("data_parallel_size", "VLLM::EngineCore_DP1"),
        ("tensor_parallel_size", "VLLM::Worker_TP1"),
    ],
)
def test_the_processes_of_vllm_end_with_a_stage_that_is_killed(
    tmp_path: Path, setting: str, process: str
) -> None:
    """The real ones: engines and workers of two devices on this machine's CPU."""
    model = write_random_llama(tmp_path / "model")
    arguments = [
        str(PIPELINE_CONFIGS / "demo.yaml"), f"run={tmp_path}/run", f"model={model}",
        f"engine.{setting}=2", "engine.kv_cache_gib=0.1", "engine.max_num_seqs=8",
        "num_captions=10000", "captions_per_shard=10000",
    ]  # fmt: skip
    stage = subprocess.Popen(
        [sys.executable, "-m", "pipelines", "captions", *arguments],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        # Without it, vLLM wants a NUMA node for each part of a model.
        env={**os.environ, "VLLM_CPU_SIM_MULTI_NUMA": "1"},
    )
    assert stage.stderr is not None
    said = []
    for line in stage.stderr:
        said.append(line)
        if "is ready after" in line:
            break
    below = descendants(stage.pid)
    assert process in " ".join(map(command, below)), "".join(said)
    assert running(below) == below
    shared = [
        memory for pid in below for memory in shared_memory(pid) if "vllm_dist" in memory.name
    ]
    stage.kill()
    assert stage.wait() == -signal.SIGKILL
    wait_until_ended(below)
    for memory in shared:
        memory.unlink(missing_ok=True)  # Four megabytes per worker on a CPU, which vLLM leaves.
    assert stage.stderr.read().count("Traceback") == 0
