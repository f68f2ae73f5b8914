"""Check every file of a run against its commit records, its index and its captions.

`python -m pipelines verify RUN` reads all shards, so it takes as long as downloading them. It
changes nothing, unless `repair=true`: then it deletes the shards that are damaged, with their
commit records and the index, so that the stage's own command makes them again.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Annotated

from pydantic import Field

from pipelines.stage import UnfinishedError
from transforms.caption_rows import CaptionRows
from transforms.core import storage
from transforms.core.config import Config, ConfigError, no_fingerprint
from transforms.core.outputs import find_outputs
from transforms.core.progress import bar
from transforms.core.stage import StageOutput
from transforms.verification import Expected, Problem, verify


class VerifyConfig(Config):
    """Settings of the check."""

    run: str = no_fingerprint()
    """Folder or URL of the run."""
    stages: tuple[str, ...] | None = None
    """Folders of the run to check, for instance [captions,images]; null checks all there are."""
    decode: bool = True
    """Decode every image: most of the time of a check on local disk."""
    threads: Annotated[int, Field(gt=0)] = 8
    """Shards read at once; each is held in memory as a whole."""
    repair: bool = False
    """Delete damaged shards, so that they are made again."""
    max_shown: Annotated[int, Field(ge=0)] = 20
    """Problems shown of each stage; all are counted."""


CONFIG = VerifyConfig


def run(config: VerifyConfig, flags: Sequence[str]) -> None:
    """Check a run and print a table; Beam's flags have no effect.

    Raises:
        ConfigError: There is nothing to check.
        UnfinishedError: Something is wrong; the message says how to go on.
    """
    outputs = {
        o.folder.url.removeprefix(config.run).strip("/"): o for o in find_outputs(config.run)
    }
    wanted = outputs if config.stages is None else config.stages
    absent = [name for name in wanted if name not in outputs]
    if not outputs:
        raise ConfigError(
            f"{config.run} holds no stage that was started: there is nothing to verify"
        )
    if absent:
        raise ConfigError(
            f"key 'stages' names {absent[0]!r}: {config.run} holds {', '.join(outputs)}"
        )
    counts: Counter[str] = Counter()
    print(f"{'stage':<18}{'shards':>9}  problems")
    for name in wanted:
        problems = _verify(config, outputs[name])
        print(f"{name:<18}{outputs[name].num_shards:>9,}  {len(problems) or 'none'}")
        for problem in problems[: config.max_shown]:
            print(f"    {problem.path}: {problem.what}")
        damaged = {problem.remake for problem in problems if problem.remake is not None}
        if config.repair:
            for shard in damaged:
                _forget(outputs[name], shard)
        counts.update(problems=len(problems), damaged=len(damaged))
    if counts["problems"]:
        raise UnfinishedError(_sentence(config, counts))


def owed_ids(output: StageOutput) -> Callable[[int], Sequence[str] | None]:
    """The records that a shard owes, in order, as far as the run itself says."""
    parent, _, name = output.folder.url.rpartition("/")
    per_shard = output.config.get("captions_per_shard")
    if not isinstance(per_shard, int) or name in ("backgrounds", "captions"):
        return lambda shard: None
    if name == "captions-raw":
        ordinals = range(output.num_records)
        return lambda shard: [str(n) for n in ordinals[shard * per_shard :][:per_shard]]
    retry = name.startswith("retry-")
    folder = output.folder.url if retry else parent
    beside = storage.join(folder, "captions")
    url = beside if retry else output.config.get("captions") or beside
    try:
        rows = CaptionRows.open(storage.join(url, "index.parquet"))
    except storage.MissingFileError:
        return lambda shard: None
    return lambda shard: [
        c.caption_id for c in rows.read(shard * per_shard, (shard + 1) * per_shard)
    ]


def _verify(config: VerifyConfig, output: StageOutput) -> list[Problem]:
    shown = bar(output.num_shards, "shards", "verify")
    try:
        expected = Expected(output, owed_ids(output), config.decode)
        return list(verify(expected, config.threads, shown.update))
    finally:
        shown.close()


def _forget(output: StageOutput, shard: int) -> None:
    """Delete a shard in the reverse of the order in which it came to be."""
    folder = output.folder
    for url in (
        folder.success_url,
        folder.index_url,
        folder.commit_url(shard),
        folder.failures_url(shard),
        folder.shard_url(shard),
    ):
        storage.delete(url)


def _sentence(config: VerifyConfig, counts: Counter[str]) -> str:
    found = f"{counts['problems']:,} problems in {config.run}"
    if not counts["damaged"]:
        return f"{found}: run the stage again, which finishes what is unfinished"
    if config.repair:
        return (
            f"{found}: {counts['damaged']:,} damaged shards were deleted; run the stage again, "
            "which makes them anew, then verify"
        )
    return (
        f"{found}: {counts['damaged']:,} shards are damaged; verify with repair=true, which "
        "deletes them, then run the stage again, which makes them anew"
    )
