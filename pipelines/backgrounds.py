"""Find plausible places for every concept with a language model (paper, section 3.1).

Asks the captions' language model about each object of the concept list, and writes the places to
`<run>/backgrounds`. The captions stage takes them instead of those of the list with
`use_backgrounds=run`. Takes the file of the captions stage, section `backgrounds`; a finished run
goes with its list: another one needs another `run`.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from pipelines.captions import DATA, CaptionsConfig, engine_spec
from pipelines.options import runs_here
from pipelines.runner import is_complete, run_stage
from transforms.captions.backgrounds import (
    CODE_VERSION,
    INSTRUCTION,
    BackgroundProducer,
    load_things,
    record_id,
)
from transforms.captions.examples import text_digest
from transforms.concepts.lists import load_concepts
from transforms.core import storage
from transforms.core.config import fingerprint_fields
from transforms.core.errors import ConfigError
from transforms.core.fingerprint import Fingerprint
from transforms.core.stages import STAGES, Stage, stage_folder
from transforms.engines.text.vllm import check_device

CONFIG = CaptionsConfig

_SHARED = ("seed", "engine", "model", "vllm", "openai")
"""Keys and sections that mean the same here as for captions."""


def run(config: CaptionsConfig, flags: Sequence[str]) -> None:
    """Find what is not found yet; `flags` are Beam's."""
    planned = stage(config)
    if config.engine == "vllm" and runs_here(flags) and not is_complete(planned):
        check_device(config.vllm)
    run_stage(planned, flags)


def stage(config: CaptionsConfig) -> Stage:
    """The backgrounds stage.

    Raises:
        ConfigError: A list or the model cannot be used.
    """
    settings = config.backgrounds
    for key in ("concepts", "model"):
        if not getattr(config, key):
            raise ConfigError(f"key {key!r} is missing: the backgrounds stage needs it")
    if settings.sampling.max_new_tokens >= config.vllm.max_model_len:
        raise ConfigError(
            f"key 'vllm.max_model_len' has value {config.vllm.max_model_len}: expected more than "
            f"backgrounds.sampling.max_new_tokens ({settings.sampling.max_new_tokens})"
        )
    engine = replace(engine_spec(config), sampling=settings.sampling)
    examples = load_things(settings.examples or storage.join(DATA, "backgrounds/examples.yaml"))
    producer = BackgroundProducer(
        load_concepts(config.concepts), examples, engine, settings, config.seed
    )
    if not producer.concepts:
        raise ConfigError(f"concept list {config.concepts!r} holds no objects to find places for")
    shared = {
        key: value
        for key, value in fingerprint_fields(config).items()
        if key.partition(".")[0] in _SHARED
    }
    return Stage(
        folder=stage_folder(config.run, "backgrounds"),
        fingerprint=Fingerprint(
            {
                **shared,
                **fingerprint_fields(settings),
                "model_identity": engine.model.identity,
                "concepts_hash": text_digest(map(record_id, producer.concepts)),
                "examples_hash": text_digest((INSTRUCTION, *examples)),
                "code_version": CODE_VERSION,
            }
        ),
        config=config.model_dump(mode="json"),
        num_shards=math.ceil(len(producer.concepts) / settings.concepts_per_shard),
        num_records=len(producer.concepts),
        unit=STAGES["backgrounds"].unit,
        producer=producer,
    )
