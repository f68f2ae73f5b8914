"""Find plausible places for every concept with a language model (paper, section 3.1).

Asks the language model of the captions about each object of the concept list, and writes the places
to `<run>/backgrounds`. With `captions.use_backgrounds=run` or `run-all`, the captions stage takes
them instead of those of the list. Reads the same file as the captions stage, here its section
`backgrounds`. A complete stage belongs to its concept list: another list needs another `run`.
"""

import math
from collections.abc import Sequence
from typing import Any

import yaml

from pipelines.captions import DATA, CaptionsConfig, engine_spec
from pipelines.options import runs_here
from pipelines.runner import run_stage, say
from transforms.captions.backgrounds import (
    CODE_VERSION,
    INSTRUCTION,
    BackgroundProducer,
    found_backgrounds,
    load_things,
    record_id,
)
from transforms.captions.examples import text_digest
from transforms.concepts.lists import load_concepts
from transforms.core import storage
from transforms.core.config import fingerprint_fields
from transforms.core.errors import ConfigError, MissingFileError, reading
from transforms.core.fingerprint import Fingerprint
from transforms.core.shards import StageFolder
from transforms.core.stages import Stage, stage_folder
from transforms.engines.text.registry import ENGINES

CONFIG = CaptionsConfig


def run(config: CaptionsConfig, flags: Sequence[str]) -> None:
    """Find places for all concepts that have none yet.

    Args:
        config: Settings of the stage.
        flags: Flags for Beam.
    """
    run_stage(stage(config), flags, config.engine.check_device if runs_here(flags) else None)
    _say_shortfall(config)


def _say_shortfall(config: CaptionsConfig) -> None:
    """Print for how many concepts the model found fewer places than asked for."""
    wanted = config.backgrounds.places_per_concept
    counts = [(len(row.places), row.record_id) for row in found_backgrounds(config.run)]
    few = sorted(count for count in counts if count[0] < wanted)
    if few:
        (fewest, name), tries = few[0], config.backgrounds.max_tries
        say(
            f"{len(few):,} of {len(counts):,} concepts have fewer than {wanted} places, {name!r} "
            f"the fewest: {fewest}. The model was asked {tries} times (backgrounds.max_tries)."
        )


def stage(config: CaptionsConfig) -> Stage:
    """Return the backgrounds stage.

    Raises:
        ConfigError: A list or the model cannot be used.
    """
    settings = config.backgrounds
    for key in ("concepts", "model"):
        if not getattr(config, key):
            raise ConfigError(f"key {key!r} is missing: the backgrounds stage needs it")
    config.engine.check_sampling(settings.sampling, "backgrounds.sampling")
    engine = engine_spec(config, settings.sampling)
    examples = load_things(settings.examples or storage.join(DATA, "backgrounds/examples.yaml"))
    producer = BackgroundProducer(
        load_concepts(config.concepts), examples, engine, settings, config.seed
    )
    if not producer.concepts:
        raise ConfigError(f"concept list {config.concepts!r} holds no objects to find places for")
    folder = stage_folder(config.run, "backgrounds")
    return Stage(
        folder=folder,
        fingerprint=Fingerprint(
            {
                **_other_engines_fields(config, folder),
                **{"seed": config.seed, "model": config.model},
                **config.engine.fingerprint(),
                **fingerprint_fields(settings),
                "model_identity": engine.model.identity,
                "concepts_hash": text_digest(map(record_id, producer.concepts)),
                "examples_hash": text_digest((INSTRUCTION, *examples)),
                "code_version": CODE_VERSION,
            }
        ),
        config=config.written(),
        num_shards=math.ceil(len(producer.concepts) / settings.concepts_per_shard),
        num_records=len(producer.concepts),
        producer=producer,
        libraries=(*config.engine.libraries, "pyarrow"),
        strict_versions=config.strict_versions,
    )


def _other_engines_fields(config: CaptionsConfig, folder: StageFolder) -> dict[str, Any]:
    """Return the settings of other engines that the fingerprint of an earlier version contains.

    It had a section for each engine, and all sections in this fingerprint. Without these fields, a
    stage that such a version began could not continue.
    """
    url = folder.run_yaml_url
    try:
        content = storage.read_bytes(url)
    except MissingFileError:
        return {}
    others = {engine.model_fields["name"].default for engine in ENGINES} - {config.engine.name}
    with reading(url):
        fields: dict[str, Any] = yaml.safe_load(content)["fields"]
        return {key: value for key, value in fields.items() if key.partition(".")[0] in others}
