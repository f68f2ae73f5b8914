"""Writes checkpoints beside the training.

A checkpoint is copied to the host and written from there by a thread, while the training goes on;
it costs the training the copy alone.
"""

import logging
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

from trainer.checkpoints.files import CheckpointConfig, State, on_host, save
from transforms.core import storage
from transforms.core.errors import StorageError

log = logging.getLogger(__name__)


class CheckpointWriter:
    """Writes checkpoints one at a time; use as a context manager.

    Leaving it waits for the last one, also after an exception. Before the first, what a writer that
    was killed had half written is removed.

    Args:
        folder: Where they go.
        config: Which stay.
    """

    def __init__(self, folder: str, config: CheckpointConfig) -> None:
        self._folder = folder
        self._config = config
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._last: Future[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._thread.shutdown(wait=True)

    def save(self, state: State) -> None:
        """Copy a state to the host and begin to write it, once the one before is written.

        Raises:
            StorageError: The one before could not be written.
        """
        self.wait()
        if self._last is None:
            self._thread.submit(_remove_unfinished, self._folder)
        self._last = self._thread.submit(save, on_host(state), self._folder, self._config)

    def is_writing(self) -> bool:
        """Whether the last checkpoint is not written yet."""
        return self._last is not None and not self._last.done()

    def wait(self) -> str:
        """Wait for the last checkpoint; returns its URL, "" if there was none.

        Raises:
            StorageError: It could not be written; older checkpoints are still there.
        """
        return self._last.result() if self._last is not None else ""


def _remove_unfinished(folder: str) -> None:
    try:
        for name in storage.list_unfinished(folder):
            storage.delete(storage.join(folder, name))
    except StorageError as error:
        log.warning("a part of a checkpoint stays: %s", error)
