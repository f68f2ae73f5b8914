"""What the `model` of a config may name: files at hand, or a model of the hub, pinned to a commit.

The two kinds of model, for text and for images, differ in the file that marks their folder and in
what else they may be called: see `text_models` and `image_models`.
"""

import contextlib
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from transforms.core.errors import ConfigError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Model:
    """A model whose identity is known. Small and picklable: no weights inside.

    Attributes:
        name: As in the config.
        commit: Of a hub id; None for files at hand.
        identity: Changes whenever the model's content does.
    """

    name: str
    commit: str | None
    identity: str


@contextlib.contextmanager
def loading(model: Model) -> Iterator[None]:
    """Say that a model is loaded, and how long it took: nothing else is to be seen meanwhile."""
    log.info("loading %s", model.name)
    started = time.monotonic()
    yield
    log.info("%s is ready after %.0f s", model.name, time.monotonic() - started)


def local_folder(name: str, marker: str, builtin: str) -> Path | None:
    """The folder that a reference means; None for a hub id.

    Args:
        name: As in the config.
        marker: The file that a model's folder holds.
        builtin: The name of our own model, for the error.

    Raises:
        ConfigError: It is neither a model's folder nor can it be a hub id.
    """
    folder = Path(name).expanduser()
    if (folder / marker).is_file():
        return folder
    if folder.is_dir() or name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ConfigError(
            f"key 'model' has value {name!r}: expected a folder that holds a {marker}, a hub id "
            f"like 'owner/name', or '{builtin}'"
        )
    return None


def refuse_revision(name: str, revision: str | None) -> None:
    """Files at hand have no revisions."""
    if revision is not None:
        raise ConfigError(
            f"key 'revision' has value {revision!r}, but model {name!r} is at hand as files: "
            "expected a revision for hub ids only"
        )


def hub_commit(name: str, revision: str | None, marker: str) -> str:
    """The commit behind a hub id, from the hub or, where it is out of reach, from its cache.

    Raises:
        ConfigError: The hub has no such model, or cannot be reached and the cache does not know it.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        path = Path(hf_hub_download(name, marker, revision=revision))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"key 'model' has value {name!r}: no such folder, and the hub has no model of that "
            f"name with a {marker} in reach ({reason})"
        ) from error
    # The cache keeps a file under snapshots/<commit>/.
    return path.parent.name
