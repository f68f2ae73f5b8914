"""Image model references: what a config's `model` may say, what it is, and where its files are.

- `builtin:tiny-sd`: the small Stable Diffusion that the package `pipelines` carries as data;
- a folder in diffusers' format, which every worker must have under the same name;
- anything else is a hub id, pinned to the commit it has when a run is started.
"""

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from transforms.core.config import ConfigError
from transforms.core.shards import file_sha256

BUILTIN_PREFIX = "builtin:"
_INDEX = "model_index.json"


@dataclass(frozen=True)
class ImageModel:
    """A model whose identity is known. Small and picklable: no weights inside.

    Attributes:
        name: As in the config.
        commit: Of a hub id; None for files at hand.
        identity: Changes whenever the model's content does.
    """

    name: str
    commit: str | None
    identity: str

    def source(self) -> str:
        """What diffusers loads on this machine: a folder, or the hub id."""
        folder = None if self.commit else _folder(self.name)
        return str(folder) if folder else self.name


def find_model(name: str, revision: str | None = None) -> ImageModel:
    """Look a model up and learn its identity, without loading it.

    Args:
        name: As in the config.
        revision: Branch, tag or commit of a hub id.

    Raises:
        ConfigError: There is no such model.
    """
    folder = _folder(name)
    if folder is not None:
        if revision is not None:
            raise ConfigError(
                f"key 'revision' has value {revision!r}, but model {name!r} is a folder: expected "
                "a revision for hub ids only"
            )
        return ImageModel(name, None, f"files@sha256:{_content_digest(folder)}")
    commit = _hub_commit(name, revision)
    return ImageModel(name, commit, f"hub:{name}@{commit}")


def _folder(name: str) -> Path | None:
    """The local folder that a reference means; None for a hub id."""
    if name.startswith(BUILTIN_PREFIX):
        folder = _builtin(name.removeprefix(BUILTIN_PREFIX))
        if folder is None:
            raise ConfigError(f"key 'model' has value {name!r}: expected 'builtin:tiny-sd'")
        return folder
    folder = Path(name).expanduser()
    if (folder / _INDEX).is_file():
        return folder
    if folder.is_dir() or name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ConfigError(
            f"key 'model' has value {name!r}: expected a folder that holds a {_INDEX}, a hub id "
            "like 'owner/name', or 'builtin:tiny-sd'"
        )
    return None


def _builtin(name: str) -> Path | None:
    # The package is found by its name and not imported: this layer knows nothing above it.
    spec = importlib.util.find_spec("pipelines")
    if spec is None or not spec.submodule_search_locations or not name:
        return None
    folder = Path(spec.submodule_search_locations[0]) / "data" / name.replace("-", "_")
    return folder if (folder / _INDEX).is_file() else None


def _content_digest(folder: Path) -> str:
    """sha256 over names and contents of the files that diffusers reads: JSON, text, safetensors."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.suffix in (".json", ".txt", ".safetensors") and "/." not in f"/{name}":
            digest.update(f"{name}\t{file_sha256(str(path))}\n".encode())
    return digest.hexdigest()[:32]


def _hub_commit(name: str, revision: str | None) -> str:
    """The commit behind a hub id, from the hub or, where it is out of reach, from its cache."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        path = Path(hf_hub_download(name, _INDEX, revision=revision))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"key 'model' has value {name!r}: no such folder, and the hub has no diffusers model "
            f"of that name in reach ({reason})"
        ) from error
    # The cache keeps a file under snapshots/<commit>/.
    return path.parent.name
