"""Writer of checkpoints in the background.

The training waits only while its state is copied to the host; a thread writes the copy.
"""

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

from trainer.checkpoints.files import CheckpointConfig, State, copy_to_host, save_checkpoint
from transforms.core import storage
from transforms.core.errors import StorageError

log = logging.getLogger(__name__)


class CheckpointWriter:
    """Writes checkpoints one at a time. Use it as a context manager.

    Leaving the context waits for the last checkpoint, also after an exception. Before the first
    checkpoint, unfinished files of a killed writer are removed.

    Args:
        folder: Folder of the checkpoints.
        config: Which checkpoints to keep.
        written: Called by the writing thread after each checkpoint, with its step.
    """

    def __init__(
        self, folder: str, config: CheckpointConfig, written: Callable[[int], None] = lambda _: None
    ) -> None:
        self._folder = folder
        self._config = config
        self._written = written
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._last: Future[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._thread.shutdown(wait=True)

    def save(self, state: State) -> None:
        """Wait for the checkpoint before, copy a state to the host and begin to write it.

        Raises:
            StorageError: The checkpoint before could not be written.
        """
        self.wait()
        if self._last is None:
            self._thread.submit(_remove_unfinished, self._folder)
        self._last = self._thread.submit(self._write, copy_to_host(state))

    def _write(self, state: State) -> str:
        url = save_checkpoint(state, self._folder, self._config)
        self._written(state["step"])
        return url

    def is_writing(self) -> bool:
        """Return True while the last checkpoint is still being written."""
        return self._last is not None and not self._last.done()

    def wait(self) -> str:
        """Wait for the last checkpoint and return its URL, "" if there was none.

        Raises:
            StorageError: It could not be written; older checkpoints are still there.
        """
        return self._last.result() if self._last is not None else ""


def _remove_unfinished(folder: str) -> None:
    try:
        for name in storage.list_unfinished(folder):
            storage.delete(storage.join(folder, name))
    except StorageError as error:
        log.warning("an unfinished checkpoint file is left: %s", error)
