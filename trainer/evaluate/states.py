"""States of protocols that train: one file each, which is whole or absent.

A start after a kill continues from the state in `<run>/<task>`; a damaged one is a new start.
"""

import hashlib
import logging

from trainer import distributed
from trainer.checkpoints.files import State, load_checkpoint, write_state
from transforms.core import storage
from transforms.core.errors import ConfigError, MissingFileError

log = logging.getLogger(__name__)


def url_of(run: str, task: str, dataset: str, made_from: str) -> str:
    """Return the file of a state; `made_from` is all that the training depends on."""
    digest = hashlib.blake2b(made_from.encode(), digest_size=16).hexdigest()
    return storage.join(run, task, f"{dataset}-{digest}.pt")


def load(url: str | None, title: str) -> State | None:
    """Return the state that is there; all ranks call this together.

    Args:
        url: File of the state; None keeps none.
        title: What is trained, for messages.

    Raises:
        StorageError: The file cannot be read.
        ConfigError: The ranks find different states.
    """
    state = distributed.run_on_all_ranks(lambda: _read(url, title))
    if len(set(distributed.gather_objects(state and state["step"]))) > 1:
        raise ConfigError(
            f"key 'run': the ranks find different states in {url}: expected a folder that all "
            "machines share"
        )
    if state is not None:
        log.info("the %s continues at step %d from %s", title, state["step"], url)
    return state


def save(state: State, url: str | None) -> None:
    """Write a state, which has its `step`, on rank 0; all ranks call this together.

    Raises:
        StorageError: The file cannot be written.
    """

    def write() -> None:
        if url is not None and distributed.rank() == 0:
            write_state(state, url)

    distributed.run_on_all_ranks(write)


def _read(url: str | None, title: str) -> State | None:
    if url is None:
        return None
    try:
        return load_checkpoint(url)
    except MissingFileError:
        return None
    except ConfigError as error:
        log.warning("%s; the %s starts again", error, title)
        return None
