"""Job configuration: one YAML file per job, `key=value` overrides, checked before anything runs.

OmegaConf reads and merges, pydantic validates. Configs are frozen: derived values are computed by
functions and never written back. Every error is one sentence that names the key, the value and what
was expected.
"""

import io
import logging
import operator
import os
from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, get_args

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
)
from pydantic.fields import FieldInfo

from transforms.core.config_keys import (
    choice_of,
    chosen_option,
    flatten,
    leaves,
    nest,
    options_of,
    unions,
)
from transforms.core.config_sentences import sentence
from transforms.core.errors import ConfigError
from transforms.core.references import (
    hide,
    interpolated,
    redacted,
    references_of,
    resolved,
    with_references,
)

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
    _references: dict[str, Any] = PrivateAttr(default_factory=dict)
    """What the file says for values that may come from the environment: dotted key -> text."""

    @classmethod
    def of_this_version(cls, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Return settings of an earlier version, as dotted keys, as this version would write them.

        A subclass adds a key that the earlier version did not have, if the version behaved in
        another way than today's default.
        """
        return dict(fields)

    def written(self) -> dict[str, Any]:
        """Return the resolved config as it is written anywhere: with references to secrets.

        `stored_config` reads it.
        """
        return with_references(self.model_dump(mode="json"), self._references)


Probability = Annotated[float, Field(ge=0, le=1)]
"""A share or a probability, from 0 to 1."""


def _from_home(value: Any) -> Any:
    return os.path.expanduser(value) if isinstance(value, str) else value


Place = Annotated[str, BeforeValidator(_from_home)]
"""A folder, file or URL; `~` at its beginning is the home folder of the user who starts the job."""

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


def added(default: Any) -> Any:
    """Declare a field that a later version added: in the fingerprint unless it has its default.

    With its default the bytes are those of earlier versions, so runs of these continue.
    """
    return Field(default, json_schema_extra={"fingerprint": "unless default"})


def load_config(cls: type[ConfigT], path: str, overrides: Sequence[str] = ()) -> ConfigT:
    """Read `path`, apply `overrides` and validate.

    Args:
        cls: Config class of the job.
        path: A local YAML file.
        overrides: `key=value` strings; dots reach into sections, values are YAML.

    Raises:
        ConfigError: The file cannot be read, or a key or value is wrong.
    """
    return parse_config(cls, _read(path), path, overrides)


def load_data(cls: type[ConfigT], path: str) -> ConfigT:
    """Read a list or another data file: like `load_config`, but without interpolation.

    Texts of data files land in captions, so a value from the environment would be published.

    Raises:
        ConfigError: The file cannot be read, a key or value is wrong, or one has an interpolation.
    """
    loaded = _parsed(_read(path), path)
    values: Any = OmegaConf.to_container(loaded)
    key = interpolated(values)
    if key is not None:
        raise ConfigError(
            f"{path}: key {key!r} contains '${{': interpolation works in the configs of jobs only, "
            "write the text itself"
        )
    return _validated(cls, values, path, loaded, {})


def parse_config(
    cls: type[ConfigT], text: str, path: str, overrides: Sequence[str] = ()
) -> ConfigT:
    """Parse YAML that was read from `path`; see `load_config`."""
    loaded = _parsed(text, path)
    try:
        merged = reduce(_overridden, overrides, _without_other_choices(cls, loaded, overrides))
        raw: Any = OmegaConf.to_container(merged)
        values: Any = OmegaConf.to_container(merged, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"config file {path!r} cannot be resolved: {_one_line(error)}") from error
    references = references_of(raw)
    hide(references, values)
    return _validated(cls, values, path, loaded, references)


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except IsADirectoryError as error:
        raise ConfigError(f"{path!r} is a folder: expected a YAML file") from error
    except OSError as error:
        raise ConfigError(f"config file {path!r} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"config file {path!r} cannot be read: it is not UTF-8 text") from error


def _parsed(text: str, path: str) -> DictConfig:
    """Parse YAML without resolving its interpolations."""
    # OmegaConf's limit against aliases that expand to a huge document, 10,000 nodes, would refuse
    # long lists too. Without aliases, no text has more nodes than characters.
    max_nodes = max(10_000, len(text))
    try:
        loaded = OmegaConf.load(io.StringIO(text), max_yaml_expanded_nodes=max_nodes)
    except yaml.YAMLError as error:
        raise ConfigError(f"config file {path!r} is not valid YAML: {_one_line(error)}") from error
    except OSError as error:  # From OmegaConf: the file holds neither a mapping nor a list.
        raise ConfigError(f"config file {path!r} must hold `key: value` lines") from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"config file {path!r} cannot be resolved: {_one_line(error)}") from error
    if not isinstance(loaded, DictConfig):
        raise ConfigError(f"config file {path!r} must hold `key: value` lines")
    return loaded


def _validated(
    cls: type[ConfigT],
    values: dict[str, Any],
    path: str,
    loaded: DictConfig,
    references: Mapping[str, Any],
) -> ConfigT:
    """Return the config of resolved values; see `sentence` for the arguments."""
    renamed = {key: new for key, _ in flatten(values) if (new := _new_name(cls, key))}
    if renamed:
        changes = "; ".join(f"key {old!r} is now {new!r}" for old, new in renamed.items())
        raise ConfigError(f"{path}: {changes}")
    try:
        config = cls.model_validate(values)
    except ValidationError as error:
        message = sentence(cls, error.errors(), path, loaded, values, references)
        raise ConfigError(redacted(message)) from None  # pydantic's error shows the values.
    config._references = dict(references)
    return config


def stored_config(
    cls: type[ConfigT], values: Mapping[str, Any], where: str, section: str = ""
) -> ConfigT:
    """Read what `Config.written` returned, from a run or a checkpoint, also of an earlier version.

    Keys that moved are renamed, and `Config.of_this_version` adds those that the version did not
    have. Keys of choices that were not taken are left out, since earlier versions wrote the
    sections of all choices.

    Args:
        cls: Config class of the job, or of the section.
        values: The stored config, nested.
        where: Name of the file, for error messages.
        section: Top-level key of the section to read; the whole config by default.

    Raises:
        ConfigError: The values are not a config of this job, or the environment lacks some.
    """
    prefix = f"{section}." if section else ""
    references = {
        key.removeprefix(prefix): raw
        for key, raw in references_of(values).items()
        if key.startswith(prefix)
    }
    found = resolved(values, section, where)
    hide(references, found)
    renamed = {_new_name(cls, key) or key: value for key, value in flatten(found)}
    nested = nest(cls.of_this_version(renamed))
    for union, info, given in unions(cls, nested):
        option = chosen_option(info, given)
        others = {name for other in options_of(info) for name in other.model_fields}
        for name in [name for name in given if name in others - set(option.model_fields)]:
            log.debug("%s: %s.%s is of another choice", where, union, name)
            del given[name]
    references = {_new_name(cls, key) or key: raw for key, raw in references.items()}
    return _validated(cls, nested, where, OmegaConf.create({}), references)


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
        value = getattr(config, name)
        if not _in_fingerprint(info, value):
            continue
        if isinstance(value, Config):
            for key, inner in fingerprint_fields(value).items():
                fields[f"{name}.{key}"] = inner
        else:
            fields[name] = config.model_dump(mode="json", include={name})[name]
    return fields


def _in_fingerprint(info: FieldInfo, value: Any) -> bool:
    extra = info.json_schema_extra
    rule = extra.get("fingerprint", True) if isinstance(extra, dict) else True
    return bool(value != info.default if rule == "unless default" else rule)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
