"""Several copies of a model side by side on one machine, for `vllm_engine`.

`vllm.LLM` refuses data parallelism. vLLM's asynchronous engine, made to serve requests, shares them
out over copies, each a process with devices of its own; here it stands behind what we use of `LLM`.
"""

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from typing import Any


class ReplicatedLLM:
    """As `vllm.LLM` with `data_parallel_size` in its settings.

    Args:
        model: Folder or hub id.
        **settings: Of vLLM's engine.
    """

    def __init__(self, model: str, **settings: Any) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="vllm", daemon=True).start()
        self._num_asked = 0
        self.llm_engine: Any = self._wait(_start(model, settings))

    def get_tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self.llm_engine.get_tokenizer()

    def generate(
        self, prompts: Sequence[Any], sampling: Sequence[Any], use_tqdm: bool = False
    ) -> list[Any]:
        """The outputs of all prompts, in order; when one fails, none is left behind."""
        return self._wait(self._generate(prompts, sampling))

    def shutdown(self) -> None:
        """End the processes of the copies."""
        self.llm_engine.shutdown()
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _generate(self, prompts: Sequence[Any], sampling: Sequence[Any]) -> list[Any]:
        first = self._num_asked
        self._num_asked += len(prompts)
        tasks = [
            asyncio.ensure_future(self._generate_one(prompt, params, str(first + number)))
            for number, (prompt, params) in enumerate(zip(prompts, sampling, strict=True))
        ]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _generate_one(self, prompt: Any, params: Any, request_id: str) -> Any:
        async for output in self.llm_engine.generate(prompt, params, request_id):
            return output  # The final one is the only one that the engine's owner asks for.


async def _start(model: str, settings: dict[str, Any]) -> Any:
    """The engine, made in the loop that it is to run in."""
    from vllm import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    return AsyncLLM.from_engine_args(AsyncEngineArgs(model, **settings))
