"""Proxy for a GCS server that fails on purpose."""

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator

from benchmarks.soak.proxy import Request, Response, Upstream, serving


class GcsProxy:
    """State of the proxy.

    Attributes:
        url: Address of the proxy, for STORAGE_EMULATOR_HOST.
        answers: Status -> number of answers; status 0 counts connections that were cut off.
        unavailable: Number of a request -> whether the proxy answers 503.
        cuts: Number of an upload -> whether the proxy cuts it off half-way.
    """

    def __init__(self, server: str) -> None:
        self.url = ""
        self.answers: Counter[int] = Counter()
        self.unavailable: Callable[[int], bool] = lambda number: False
        self.cuts: Callable[[int], bool] = lambda number: False
        self._upstream = Upstream(server)
        self._num_requests = 0
        self._num_uploads = 0
        self._lock = threading.Lock()

    def trouble(self, request: Request) -> str | None:
        """Count a request; return what happens to it, see `benchmarks.soak.proxy.TROUBLES`."""
        with self._lock:
            self._num_requests += 1
            if self.unavailable(self._num_requests):
                self.answers[503] += 1
                return "503"
            if request.is_upload:
                self._num_uploads += 1
                if self.cuts(self._num_uploads):
                    self.answers[0] += 1
                    return "upload cut off"
        return None

    def answer(self, request: Request) -> Response:
        """Pass a request on."""
        response = self._upstream(request)
        if not request.is_cut:
            self.answers[response.status] += 1
        return response


@contextlib.contextmanager
def gcs_proxy(server: str) -> Iterator[GcsProxy]:
    """Run a proxy for the GCS server at the address `server`."""
    proxy = GcsProxy(server)
    with serving(proxy.answer, proxy.trouble) as listening:
        proxy.url = listening.url
        yield proxy
