"""Rebuild the index and `_SUCCESS` of a stage from its commit records.

`python -m pipelines index RUN` is for an index that was lost or damaged: a stage writes its index
when its last shard is committed. The same commit records give the same bytes.
"""

from collections.abc import Sequence

from pipelines.runner import finish, plan
from transforms.core.config import Config, Place, no_fingerprint
from transforms.core.errors import ConfigError, UnfinishedError
from transforms.core.shards import committed_shards
from transforms.core.stages import STAGES, find_outputs, stage_folder


class IndexConfig(Config):
    """Settings of `index`."""

    run: Place = no_fingerprint()
    """Folder or URL of the run."""
    stage: str = "images"
    """Folder of the stage in the run, for instance captions-raw or images/retry-1."""


CONFIG = IndexConfig


def run(config: IndexConfig, flags: Sequence[str]) -> None:
    """Write the index of one stage and of its complete retries; Beam's flags have no effect.

    Raises:
        ConfigError: There is no such stage.
        UnfinishedError: Some of its shards are not committed.
    """
    known = config.stage.partition("/")[0] in STAGES
    outputs = list(find_outputs(config.run, (config.stage,))) if known else []
    if known and not outputs and committed_shards(folder := stage_folder(config.run, config.stage)):
        raise UnfinishedError(
            f"run.yaml or plan.json in {folder.url} is lost: run {folder.commands}, which writes "
            "it again, and the index"
        )
    if not outputs:
        raise ConfigError(
            f"key 'stage' has value {config.stage!r}: there is no such stage in {config.run}"
        )
    missing = plan(outputs[0])
    if missing:
        raise UnfinishedError(
            f"{len(missing):,} of {outputs[0].num_shards:,} shards are not committed, or their "
            f"files are gone, in {outputs[0].folder.url}: run {outputs[0].folder.commands} until "
            "it is complete, which also writes the index"
        )
    for retry in outputs[1:]:
        if not plan(retry):
            finish(retry)
    finish(outputs[0])
