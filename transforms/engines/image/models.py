"""Image model references: what a config's `model` may name, its identity, and where its files are.

- `builtin:NAME`: a small model that is installed with the jobs, for instance `builtin:tiny-sd`;
- a folder in diffusers' format, which must have the same path on every worker;
- anything else is a hub id, pinned to the commit that it has when the run starts.
"""

import hashlib
from pathlib import Path

from transforms.core.errors import ConfigError
from transforms.core.shards import file_sha256
from transforms.engines.hub import hub_commit
from transforms.engines.model_refs import FindBuiltin, Model, local_folder, refuse_revision

BUILTIN_PREFIX = "builtin:"
_BUILTIN = f"{BUILTIN_PREFIX}tiny-sd"
_INDEX = "model_index.json"

_SAME_IMAGES = {
    # tiny-sd, since the file of its text encoder names the type float32. It named float16, and the
    # pipeline failed in every program that does not set a type, as our engine always does.
    "932d1a163783cc4129673b5924d5089b": "3bce85cfe9f595a302cee98f534b8bbc",
}
"""Digest of a folder -> digest of an earlier one that paints the same images, bit for bit. The
folder keeps the earlier identity, so that runs continue and the seeds of their images stay."""


def find_image_model(name: str, revision: str | None, find_builtin: FindBuiltin) -> Model:
    """Look a model up and compute its identity, without loading it.

    Args:
        name: The `model` of the config.
        revision: Branch, tag or commit of a hub id.
        find_builtin: Finds the folder of a built-in model, here and on workers.

    Raises:
        ConfigError: There is no such model.
    """
    if name.startswith(BUILTIN_PREFIX):
        folder: Path | None = _builtin_folder(name, find_builtin)
    else:
        folder = local_folder(name, _INDEX, _BUILTIN)
    if folder is None:
        commit = hub_commit(name, revision, _INDEX)
        return Model(name, commit, f"hub:{name}@{commit}")
    refuse_revision(name, revision)
    digest = _content_digest(folder)
    identity = f"files@sha256:{_SAME_IMAGES.get(digest, digest)}"
    # Only built-in models carry the function: other workers need not have its module installed.
    is_builtin = name.startswith(BUILTIN_PREFIX)
    return Model(name, None, identity, find_builtin if is_builtin else None)


def image_model_source(model: Model) -> str:
    """Return what diffusers loads on this machine: a folder or the hub id."""
    if model.find_builtin is not None:
        return str(_builtin_folder(model.name, model.find_builtin))
    folder = None if model.commit else local_folder(model.name, _INDEX, _BUILTIN)
    return str(folder) if folder else model.name


def _builtin_folder(name: str, find_builtin: FindBuiltin) -> Path:
    folder = find_builtin(name.removeprefix(BUILTIN_PREFIX))
    if folder is None:
        raise ConfigError(f"key 'model' has value {name!r}: expected {_BUILTIN!r}")
    return folder


def _content_digest(folder: Path) -> str:
    """Return a sha256 over names and contents of the files that diffusers reads, 32 hex digits.

    Those are JSON, text and safetensors files.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.suffix in (".json", ".txt", ".safetensors") and "/." not in f"/{name}":
            digest.update(f"{name}\t{file_sha256(str(path))}\n".encode())
    return digest.hexdigest()[:32]
