"""Model references: what a config's `model` may name, a local folder or a pinned model of the hub.

Text models and image models differ in the file that marks their folder and in their further kinds
of reference: see `text/models.py` and `image/models.py`.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from transforms.core.errors import ConfigError
from transforms.engines.hub import refusals

log = logging.getLogger(__name__)

FindBuiltin = Callable[[str], Path | None]
"""Returns the folder of a built-in model on this machine, None if there is no such model.

The jobs pass it down, since they own the built-in models. It must be a function of a module, so
that it pickles by its name: each worker then looks in its own installation.
"""


@dataclass(frozen=True)
class Model:
    """A model whose identity is known. Small and picklable: it holds no weights.

    Attributes:
        name: The `model` of the config.
        commit: Commit of a hub id; None for local files.
        identity: Changes whenever the content of the model does.
        find_builtin: Finds a built-in model; None for all other models.
    """

    name: str
    commit: str | None
    identity: str
    find_builtin: FindBuiltin | None = None


@contextlib.contextmanager
def loading(model: Model) -> Iterator[None]:
    """Log that a model is being loaded and how long it took: nothing else is visible meanwhile.

    Raises:
        ConfigError: The hub refuses the model to this machine, for instance without its token.
    """
    log.info("loading %s", model.name)
    started = time.monotonic()
    with refusals(model.name, model.commit) if model.commit else contextlib.nullcontext():
        yield
    log.info("%s is ready after %.0f s", model.name, time.monotonic() - started)


def local_folder(name: str, marker: str, builtin: str) -> Path | None:
    """Return the local folder that a reference names, None for a hub id.

    Args:
        name: The `model` of the config.
        marker: Name of a file that every model folder holds.
        builtin: Reference of our own model, for the error message.

    Raises:
        ConfigError: The name is neither a model folder nor a possible hub id.
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
    """Raise a `ConfigError` if a revision is given for a model that consists of local files."""
    if revision is not None:
        raise ConfigError(
            f"key 'revision' has value {revision!r}, but model {name!r} consists of local files: "
            "expected a revision for hub ids only"
        )
