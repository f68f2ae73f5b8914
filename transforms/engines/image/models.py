"""Image model references: what a config's `model` may say, what it is, and where its files are.

- `builtin:tiny-sd`: the small Stable Diffusion that the package `pipelines` carries as data;
- a folder in diffusers' format, which every worker must have under the same name;
- anything else is a hub id, pinned to the commit it has when a run is started.
"""

import hashlib
import importlib.util
from pathlib import Path

from transforms.core.errors import ConfigError
from transforms.core.shards import file_sha256
from transforms.engines.model_refs import Model, hub_commit, local_folder, refuse_revision

BUILTIN_PREFIX = "builtin:"
_INDEX = "model_index.json"


class ImageModel(Model):
    """A text-to-image model whose identity is known."""

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
        refuse_revision(name, revision)
        return ImageModel(name, None, f"files@sha256:{_content_digest(folder)}")
    commit = hub_commit(name, revision, _INDEX)
    return ImageModel(name, commit, f"hub:{name}@{commit}")


def _folder(name: str) -> Path | None:
    """The local folder that a reference means; None for a hub id."""
    if name.startswith(BUILTIN_PREFIX):
        folder = _builtin(name.removeprefix(BUILTIN_PREFIX))
        if folder is None:
            raise ConfigError(f"key 'model' has value {name!r}: expected 'builtin:tiny-sd'")
        return folder
    return local_folder(name, _INDEX, "builtin:tiny-sd")


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
