"""Several copies of a model on one machine, for the engine in `vllm.py`.

`vllm.LLM` refuses data parallelism. vLLM's asynchronous engine, which is made for servers,
distributes requests over copies, each in its own processes with its own devices. This module offers
it with the methods of `LLM` that we use.
"""

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from typing import Any


class ReplicatedLLM:
    """A `vllm.LLM` that accepts `data_parallel_size`.

    Args:
        model: Folder or hub id.
        **settings: Arguments of vLLM's engine.
    """

    def __init__(self, model: str, **settings: Any) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="vllm", daemon=True).start()
        self._num_asked = 0
        self.llm_engine: Any = self._wait(_start(model, settings))

    def get_tokenizer(self) -> Any:
        """Return the model's tokenizer."""
        return self.llm_engine.get_tokenizer()

    def generate(
        self, prompts: Sequence[Any], sampling: Sequence[Any], use_tqdm: bool = False
    ) -> list[Any]:
        """Return the outputs of all prompts, in order; if one fails, all others are cancelled."""
        return self._wait(self._generate(prompts, sampling))

    def shutdown(self) -> None:
        """Stop the processes of the copies."""
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
            return output  # The sampling parameters ask for the final output only.


async def _start(model: str, settings: dict[str, Any]) -> Any:
    """Return the engine, created in the event loop that it will run in."""
    from vllm import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    return AsyncLLM.from_engine_args(AsyncEngineArgs(model, **settings))
