"""Job configuration: one YAML file per job, `key=value` overrides, checked before anything runs.

OmegaConf reads and merges, pydantic validates. Configs are frozen: derived values are computed by
functions and never written back. Every error is one sentence that names the key, the value and what
was expected.
"""

import io
import logging
import operator
from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, get_args

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from transforms.core.config_keys import (
    choice_of,
    chosen_option,
    flatten,
    leaves,
    options_of,
    unions,
)
from transforms.core.config_sentences import sentence
from transforms.core.errors import ConfigError

log = logging.getLogger(__name__)


class Config(BaseModel):
    """Base of every config section: frozen; unknown keys and infinite numbers are errors.

    Describe each field in a string literal right under it: it becomes the key's help.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )
    moved: ClassVar[Mapping[str, str]] = {}
    """Old dotted key or section -> new key or section. Files and overrides with an old key are
    refused with a sentence that names the new one; see also `stored_config`."""


Probability = Annotated[float, Field(ge=0, le=1)]
"""A share or a probability, from 0 to 1."""

ConfigT = TypeVar("ConfigT", bound=Config)


def chosen_by(key: str, default: str) -> BeforeValidator:
    """Let a key choose one of several sections, with a default if the key is left out.

    Use it after pydantic's discriminator, on sections that each give `key` its own `Literal`:

        Annotated[VllmConfig | OpenAIConfig, Field(discriminator="name"), chosen_by("name", "vllm")]

    Args:
        key: The discriminator, a key of every section.
        default: Its value if a section does not contain it.
    """

    def with_choice(value: Any) -> Any:
        if isinstance(value, str):
            raise ValueError(f"expected a section, with this as its key {key!r}")
        return {key: default, **value} if isinstance(value, Mapping) else value

    return BeforeValidator(with_choice)


def one_of(options: Sequence[type[Config]], key: str = "name") -> Any:
    """Return the type of a field that holds one of several sections.

    Args:
        options: Classes of the sections. The first one is taken if a config does not choose.
        key: The key that chooses; each class gives it a `Literal` of its own.
    """
    default = get_args(options[0].model_fields[key].annotation)[0]
    if len(options) == 1:  # Which pydantic does not accept as a union.
        return Annotated[options[0], chosen_by(key, default)]
    union = reduce(operator.or_, options)
    return Annotated[union, Field(discriminator=key), chosen_by(key, default)]


def no_fingerprint(default: Any = ...) -> Any:
    """Declare a field that may change where or how fast a stage runs, but never its bytes."""
    return Field(default, json_schema_extra={"fingerprint": False})


def load_config(cls: type[ConfigT], path: str, overrides: Sequence[str] = ()) -> ConfigT:
    """Read `path`, apply `overrides` and validate.

    Args:
        cls: Config class of the job.
        path: A local YAML file.
        overrides: `key=value` strings; dots reach into sections, values are YAML.

    Raises:
        ConfigError: The file cannot be read, or a key or value is wrong.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except IsADirectoryError as error:
        raise ConfigError(f"{path!r} is a folder: expected a YAML file") from error
    except OSError as error:
        raise ConfigError(f"config file {path!r} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"config file {path!r} cannot be read: it is not UTF-8 text") from error
    return parse_config(cls, text, path, overrides)


def parse_config(
    cls: type[ConfigT], text: str, path: str, overrides: Sequence[str] = ()
) -> ConfigT:
    """Parse YAML that was read from `path`; see `load_config`."""
    try:
        loaded = OmegaConf.load(io.StringIO(text))
        if not isinstance(loaded, DictConfig):
            raise ConfigError(f"config file {path!r} must hold `key: value` lines")
        merged = reduce(_overridden, overrides, _without_other_choices(cls, loaded, overrides))
        values: Any = OmegaConf.to_container(merged, resolve=True)
    except yaml.YAMLError as error:
        raise ConfigError(f"config file {path!r} is not valid YAML: {_one_line(error)}") from error
    except OSError as error:  # From OmegaConf: the file holds neither a mapping nor a list.
        raise ConfigError(f"config file {path!r} must hold `key: value` lines") from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"config file {path!r} cannot be resolved: {_one_line(error)}") from error
    renamed = {key: new for key, _ in flatten(values) if (new := _new_name(cls, key))}
    if renamed:
        changes = "; ".join(f"key {old!r} is now {new!r}" for old, new in renamed.items())
        raise ConfigError(f"{path}: {changes}")
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        raise ConfigError(sentence(cls, error.errors(), path, loaded, values)) from error


def stored_config(cls: type[ConfigT], values: Mapping[str, Any], where: str) -> ConfigT:
    """Read the resolved config that a run or a checkpoint contains, also of an earlier version.

    Keys that moved are renamed. Keys of choices that were not taken are left out, since earlier
    versions wrote the sections of all choices.

    Args:
        cls: Config class of the job.
        values: The stored config, nested.
        where: Name of the file, for error messages.

    Raises:
        ConfigError: The values are not a config of this job.
    """
    flat = {_new_name(cls, key) or key: value for key, value in flatten(values)}
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *sections, name = key.split(".")
        reduce(lambda at, section: at.setdefault(section, {}), sections, nested)[name] = value
    for section, info, given in unions(cls, nested):
        option = chosen_option(info, given)
        others = {name for other in options_of(info) for name in other.model_fields}
        for name in [name for name in given if name in others - set(option.model_fields)]:
            log.debug("%s: %s.%s is of another choice", where, section, name)
            del given[name]
    try:
        return cls.model_validate(nested)
    except ValidationError as error:
        loaded = OmegaConf.create({})
        raise ConfigError(sentence(cls, error.errors(), where, loaded, nested)) from error


def fields_of_other_choices(config: Config) -> set[str]:
    """Return the keys of sections that were not chosen; old fingerprints contain them, too."""
    values = config.model_dump(mode="json")
    return {key for key, _ in leaves(type(config))} - {
        key for key, _ in leaves(type(config), values=values)
    }


def _new_name(cls: type[Config], key: str) -> str | None:
    """Return the new key of one that moved, None for all other keys."""
    for old, new in cls.moved.items():
        # A key may have become a section of the same name: engine -> engine.name.
        if key == old or (key.startswith(f"{old}.") and not new.startswith(f"{old}.")):
            return new + key.removeprefix(old)
    return None


def _without_other_choices(
    cls: type[Config], loaded: DictConfig, overrides: Sequence[str]
) -> DictConfig:
    """Empty the sections for which an override makes another choice than the file."""
    values: Any = OmegaConf.to_container(loaded)
    if not isinstance(values, dict):
        return loaded
    for section, info, given in unions(cls, values):
        key = f"{section}.{info.discriminator}="
        wanted = [text.removeprefix(key) for text in overrides if text.startswith(key)]
        if wanted and wanted[-1] != choice_of(chosen_option(info, given), info):
            given.clear()
    return OmegaConf.create(values)


def _overridden(config: DictConfig, override: str) -> DictConfig:
    if not override.partition("=")[0] or "=" not in override:
        raise ConfigError(f"override {override!r} is not of the form key=value")
    try:
        merged = OmegaConf.merge(config, OmegaConf.from_dotlist([override]))
    except (yaml.YAMLError, OmegaConfBaseException, IndexError, TypeError) as error:
        raise ConfigError(f"override {override!r} cannot be read: {_one_line(error)}") from error
    assert isinstance(merged, DictConfig), "since both of its parts are"
    return merged


def fingerprint_fields(config: Config) -> dict[str, Any]:
    """Return the settings that change the bytes of a stage, as dotted keys with JSON values."""
    fields: dict[str, Any] = {}
    for name, info in type(config).model_fields.items():
        if not _in_fingerprint(info):
            continue
        value = getattr(config, name)
        if isinstance(value, Config):
            for key, inner in fingerprint_fields(value).items():
                fields[f"{name}.{key}"] = inner
        else:
            fields[name] = config.model_dump(mode="json", include={name})[name]
    return fields


def _in_fingerprint(info: FieldInfo) -> bool:
    extra = info.json_schema_extra
    return not (isinstance(extra, dict) and extra.get("fingerprint") is False)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
