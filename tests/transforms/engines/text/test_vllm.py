import importlib
import importlib.util
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from transforms.core import scratch
from transforms.engines.model_refs import Model
from transforms.engines.text import vllm as vllm_engine
from transforms.engines.text.base import Completion, SamplingConfig, complete_each
from transforms.engines.text.top_p import keep_top_p
from transforms.engines.text.vllm import VllmConfig, VllmEngine


class FakeLLM:
    """Fake of `vllm.LLM` with one token per word, which fails when a test tells it to."""

    loaded: list["FakeLLM"]
    num_watched: int
    """Number of calls so far that let child processes end with this process."""
    is_shut_down = False
    failures: list[int]
    """Numbers of unfinished requests that the next failures leave behind, last one first."""

    def __init__(self, model: str, **settings: Any) -> None:
        assert all(llm.is_shut_down for llm in self.loaded), "two models in memory"
        self.settings = settings
        self.watched = self.num_watched
        self.unfinished = 0
        self.llm_engine = SimpleNamespace(
            get_num_unfinished_requests=lambda: self.unfinished,
            engine_core=SimpleNamespace(shutdown=self.shutdown),
        )
        self.loaded.append(self)

    def get_tokenizer(self) -> Any:
        return lambda texts: {"input_ids": [text.split() for text in texts]}

    def shutdown(self) -> None:
        self.is_shut_down = True

    def generate(self, prompts: list[Any], sampling: list[Any], use_tqdm: bool) -> list[Any]:
        if len(prompts) > 1 and self.failures:
            self.unfinished = self.failures.pop()
            raise RuntimeError("a kernel failed")
        texts = [" ".join(["about", *prompt["prompt_token_ids"]]) for prompt in prompts]
        written = [SimpleNamespace(text=t, finish_reason="stop", token_ids=[1]) for t in texts]
        return [SimpleNamespace(outputs=[one]) for one in written]


@pytest.fixture
def fake_vllm(monkeypatch: pytest.MonkeyPatch) -> type[FakeLLM]:
    FakeLLM.loaded, FakeLLM.failures, FakeLLM.num_watched = [], [], 0
    fake = SimpleNamespace(LLM=FakeLLM, SamplingParams=lambda **_: None)
    monkeypatch.setitem(sys.modules, "vllm", fake)
    kinds = SimpleNamespace(RequestOutputKind=SimpleNamespace(FINAL_ONLY=2))
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", kinds)
    monkeypatch.setattr(VllmConfig, "check_device", lambda config: None)
    monkeypatch.setattr(vllm_engine, "ReplicatedLLM", type("FakeReplicas", (FakeLLM,), {}))
    monkeypatch.setattr(vllm_engine, "text_model_source", lambda model, cache: "folder")

    def watch() -> None:
        FakeLLM.num_watched += 1

    monkeypatch.setattr(vllm_engine, "end_children_with_this_process", watch)
    for name in ("VLLM_RPC_BASE_PATH", "PYTHONWARNINGS"):
        monkeypatch.setenv(name, "")  # Restored at the end.
        monkeypatch.delenv(name)
    return FakeLLM


def engine(**settings: Any) -> VllmEngine:
    return VllmEngine(Model("any", None, "any"), VllmConfig(**settings), SamplingConfig())


@pytest.mark.parametrize(("devices", "copies"), [(1, 1), (4, 1), (2, 3)])
def test_parallel_settings_reach_vllm(fake_vllm: type[FakeLLM], devices: int, copies: int) -> None:
    engine(tensor_parallel_size=devices, data_parallel_size=copies).restart()
    for llm in fake_vllm.loaded:
        assert llm.settings["tensor_parallel_size"] == devices
        assert llm.settings.get("data_parallel_size", 1) == copies
    assert ("data_parallel_size" in llm.settings) == (copies > 1), "which vllm.LLM refuses"


@pytest.mark.parametrize(("devices", "copies"), [(1, 1), (2, 1), (1, 2)])
def test_the_processes_of_vllm_end_with_this_one_and_keep_sockets_in_scratch(
    fake_vllm: type[FakeLLM], devices: int, copies: int
) -> None:
    engine(tensor_parallel_size=devices, data_parallel_size=copies)
    several = devices * copies > 1
    assert fake_vllm.loaded[0].watched == several, "before vLLM starts its processes"
    sockets = os.environ.get("VLLM_RPC_BASE_PATH")
    assert (sockets is not None) == several
    if sockets is not None:
        assert Path(sockets).is_dir()
        assert Path(sockets).name.startswith(scratch.PREFIX)


def test_only_safetensors_are_loaded(fake_vllm: type[FakeLLM]) -> None:
    """vLLM's default also loads pickled weights, which can run any code."""
    for copies in (1, 2):
        fake_vllm.loaded.clear()
        engine(data_parallel_size=copies)
        assert fake_vllm.loaded[0].settings["load_format"] == "safetensors"


def test_on_a_cpu_each_process_of_vllm_samples_with_our_top_p(
    fake_vllm: type[FakeLLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = VllmConfig(device="cpu", dtype="float32")
    VllmEngine(Model("any", None, "any"), config, SamplingConfig(top_p=0.7))
    settings = pickle.loads(pickle.dumps(fake_vllm.loaded[0].settings))
    module = SimpleNamespace(LogitsProcessor=object)
    monkeypatch.setitem(sys.modules, "vllm.v1.sample.logits_processor", module)
    name, _, kind = settings["logits_processors"][0].partition(":")
    vllm_config = SimpleNamespace(additional_config=settings["additional_config"])
    processor = getattr(importlib.import_module(name), kind)(vllm_config, "cpu", False)
    logits = torch.randn(3, 1000, generator=torch.Generator().manual_seed(0)).mul_(3)
    kept = keep_top_p(logits.clone(), 0.7)
    torch.testing.assert_close(processor.apply(logits), kept, rtol=0, atol=0)
    assert kept.isfinite().any(dim=1).all() and not kept.isfinite().all()
    sys.modules.pop(name)  # It was imported with a fake of vLLM.


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize(("unfinished", "loads"), [(0, 1), (3, 2)])
def test_an_engine_that_stops_in_the_middle_of_a_batch_is_loaded_again(
    fake_vllm: type[FakeLLM], unfinished: int, loads: int, copies: int
) -> None:
    asked = engine(max_model_len=200, data_parallel_size=copies)
    fake_vllm.failures = [unfinished]
    completions = complete_each(asked, ["a", "b " * 150, "c"], [1, 2, 3])
    assert completions[0] == Completion("about a", True, 1)
    assert completions[1].error == "the prompt has 150 tokens, only 100 fit"
    assert completions[2] == Completion("about c", True, 1)
    assert len(fake_vllm.loaded) == loads


@pytest.mark.xdist_group("models")
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_real_vllm_on_the_built_in_model() -> None:
    command = [sys.executable, "-m", "tests.support.vllm_process"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=880)
    assert done.returncode == 0, done.stderr
    failed, restarted = done.stderr.splitlines()  # Ours; vLLM is quiet.
    assert "failed on 20 prompts" in failed and "is restarted" in restarted
    seen = json.loads(done.stdout)
    first = seen["first"]
    assert seen["errors"] == [7], "a prompt that is too long costs its own completion"
    assert all("\n" not in text for text in first), "a caption is one line"
    assert all(1 <= tokens <= 24 for i, tokens in enumerate(seen["tokens"]) if i != 7)
    assert any(seen["finished"])
    cats = [first[i] for i in (0, 4, 8, 12, 16)]
    assert len(set(cats)) > 1, "each seed has its own sample"
    # Not always all of them: with a filled cache, sums are rounded differently.
    same = sum(a == b for a, b in zip(first, seen["again"], strict=True))
    assert same >= 15, "the same seeds give the same samples"
    assert seen["recovered"] == [7], "a batch that breaks vLLM is repeated after a restart"
    assert seen["children"] == [], "no engine process that a killed worker would leave behind"


def test_no_sampler_is_compiled_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "VLLM_USE_FLASHINFER_SAMPLER"
    monkeypatch.setattr(os, "environ", {k: v for k, v in os.environ.items() if k != name})
    vllm_engine._prepare_process(VllmConfig())
    assert os.environ[name] == "0"
    found = importlib.util.find_spec("vllm")
    assert found and found.origin
    assert f'os.environ["{name}"]' in (Path(found.origin).parent / "envs.py").read_text()
