"""Rebuild a stage's index and `_SUCCESS` from its commit records.

`python -m pipelines index RUN`. A stage does this itself when its last shard is committed; this is
for an index that was lost or damaged. The same commit records give the same bytes.
"""

from collections.abc import Sequence

from pipelines.runner import finish, plan
from pipelines.verify import COMMANDS
from transforms.core.config import Config, no_fingerprint
from transforms.core.errors import ConfigError, UnfinishedError
from transforms.core.stages import find_outputs


class IndexConfig(Config):
    """Settings of the rebuilding."""

    run: str = no_fingerprint()
    """Folder or URL of the run."""
    stage: str = "images"
    """Folder of the run whose index is rebuilt."""


CONFIG = IndexConfig


def run(config: IndexConfig, flags: Sequence[str]) -> None:
    """Write the index of one stage, and those of its complete retries; Beam's flags have no effect.

    Raises:
        ConfigError: There is no such stage.
        UnfinishedError: Some of its shards are not committed; an index is of all of them.
    """
    outputs = list(find_outputs(config.run, (config.stage,)))
    if not outputs:
        raise ConfigError(
            f"key 'stage' has value {config.stage!r}: there is no such stage in {config.run}"
        )
    missing = plan(outputs[0])
    if missing:
        command = COMMANDS.get(config.stage, ("retry-failed",))[-1]
        raise UnfinishedError(
            f"{len(missing):,} of {outputs[0].num_shards:,} shards are not committed in "
            f"{outputs[0].folder.url}: run the stage {command!r} to its end, which writes the index"
        )
    for retry in outputs[1:]:
        if not plan(retry):
            finish(retry)
    finish(outputs[0])
