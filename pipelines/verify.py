"""Check every file of a run against its commit records, its index and its captions.

`python -m pipelines verify RUN` reads all shards, so it takes as long as downloading them. It
changes nothing, unless `repair=true`: then it deletes the shards that are damaged, with their
commit records and the index, so that the stage's own command makes them again, and the unfinished
files of processes that died.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from pydantic import NonNegativeInt, PositiveInt

from transforms.core import storage
from transforms.core.config import Config, no_fingerprint
from transforms.core.dead_letters import dead_letters
from transforms.core.errors import ConfigError, DamagedFileError, MissingFileError, UnfinishedError
from transforms.core.progress import bar
from transforms.core.shards import StageFolder, read_commits
from transforms.core.stages import StageOutput, find_outputs
from transforms.images.caption_reader import CaptionRows
from transforms.verify import Expected, Problem, verify

LEFT_BEHIND_S = 3600.0
"""A file under construction that nobody has written to for so long is a dead process's."""

COMMANDS = {
    "backgrounds": ("backgrounds",),
    "captions-raw": ("captions",),
    "captions": ("curate",),
    "images": ("images",),
    "retry": ("images", "retry-failed"),
}
"""Folder of a stage -> the commands that make its shards anew."""


class VerifyConfig(Config):
    """Settings of the check."""

    run: str = no_fingerprint()
    """Folder or URL of the run."""
    stages: tuple[str, ...] | None = None
    """Folders of the run to check, for instance [captions,images]; null checks all there are."""
    decode: bool = True
    """Decode every image: most of the time of a check on local disk."""
    threads: PositiveInt = 8
    """Shards read at once; each is held in memory as a whole."""
    repair: bool = False
    """Delete damaged shards, so that they are made again, and unfinished files an hour old."""
    max_shown: NonNegativeInt = 20
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
    num_problems, num_left = 0, 0
    num_damaged: dict[str, int] = {}
    print(f"{'stage':<18}{'shards':>9}  problems")
    for name in wanted:
        problems = [*_verify(config, outputs[name]), *painted_twice(outputs, name)]
        left = list(left_behind(outputs[name], time.time()))
        problems += [Problem(path, "was left unfinished by a process that died") for path in left]
        print(f"{name:<18}{outputs[name].num_shards:>9,}  {len(problems) or 'none'}")
        for problem in problems[: config.max_shown]:
            print(f"    {problem.path}: {problem.what}")
        damaged = {problem.remake for problem in problems if problem.remake is not None}
        if config.repair:
            for shard in damaged:
                _forget(outputs[name], shard)
            for path in left:
                storage.delete(storage.join(outputs[name].folder.url, path))
        num_problems += len(problems)
        num_left += len(left)
        if damaged:
            num_damaged[name] = len(damaged)
    if num_problems:
        found = f"{num_problems:,} problems in {config.run}"
        raise UnfinishedError(f"{found}: {_how_to_go_on(config.repair, num_damaged, num_left)}")


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
    except MissingFileError:
        return lambda shard: None
    return lambda shard: [
        c.caption_id for c in rows.read(shard * per_shard, (shard + 1) * per_shard)
    ]


def painted_twice(outputs: Mapping[str, StageOutput], name: str) -> Iterator[Problem]:
    """Captions of a retry that are no dead letters of what it retries: those stand in both.

    They can if a shard was made anew after its dead letters had been painted by the retry.
    """
    stage, _, number = name.partition("/retry-")
    if not number:
        return
    before = outputs[stage if number == "1" else f"{stage}/retry-{int(number) - 1}"]
    try:
        records = read_commits(before.folder, range(before.num_shards))
        num_failed = sum(record.num_failures for record in records)
        failed = [letter for _, letters in dead_letters(before.folder) for letter in letters]
    except (DamagedFileError, MissingFileError):
        return  # Reported with its shard, or not yet known.
    if len(failed) != num_failed:
        return  # Reported with its shard.
    owed = owed_ids(outputs[name])
    painted = [key for shard in range(outputs[name].num_shards) for key in owed(shard) or ()]
    num_twice = len(set(painted) - set(failed))
    if num_twice:
        yield Problem(
            "captions",
            f"{num_twice:,} of its captions are painted twice, since a shard of what it retries "
            f"was made anew: delete {outputs[name].folder.url} and the retries after it, then run "
            "images and retry-failed again",
        )


def left_behind(output: StageOutput, now: float) -> Iterator[str]:
    """Files of a stage, not of its retries, that a process was writing when it died."""
    for path, written in storage.list_unfinished(output.folder.url).items():
        if written < now - LEFT_BEHIND_S and not path.startswith("retry-"):
            yield path


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
    parent, _, name = folder.url.rpartition("/")
    if name.startswith("retry-"):
        # The index of the images lists its shards, too.
        images = StageFolder(parent, folder.name, folder.suffix)
        storage.delete(images.success_url)
        storage.delete(images.index_url)
    for url in (
        folder.success_url,
        folder.index_url,
        folder.commit_url(shard),
        folder.failures_url(shard),
        folder.shard_url(shard),
    ):
        storage.delete(url)


def _how_to_go_on(repair: bool, num_damaged: Mapping[str, int], num_left: int) -> str:
    """What is deleted or to be deleted, and which commands to run.

    Args:
        repair: Whether it is deleted already.
        num_damaged: Damaged shards by the folder of their stage.
        num_left: Unfinished files of processes that died.
    """
    if not num_damaged and not num_left:
        return "do as the lines say, or run the stage again, which finishes what is unfinished"
    names = dict.fromkeys(
        command
        for name in num_damaged
        for command in COMMANDS["retry" if "/retry-" in name else name]
    )
    damaged = f"{sum(num_damaged.values()):,} shards are damaged" if num_damaged else ""
    left = f"{num_left:,} files were left unfinished" if num_left else ""
    what = " and ".join(part for part in (damaged, left) if part)
    anew = f"run {', then '.join(names)} again, which makes them anew" if names else ""
    if repair:
        return f"{what} and deleted; {anew + ', then verify' if anew else 'verify again'}"
    then = f", then {anew}" if anew else ""
    return f"{what}; verify with repair=true, which deletes them{then}"
