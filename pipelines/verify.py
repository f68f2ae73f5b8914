"""Check every file of a run against its commit records, its index and its captions.

`python -m pipelines verify RUN` reads all shards, so it takes as long as downloading them. It
changes nothing, unless `repair=true`: then it deletes damaged shards with their commit records and
the index, so that the command of the stage makes them again, and unfinished files of processes that
died.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

from pydantic import NonNegativeInt, PositiveInt
from tabulate import tabulate

from transforms.core import storage
from transforms.core.config import Config, no_fingerprint
from transforms.core.dead_letters import dead_letters
from transforms.core.errors import ConfigError, DamagedFileError, MissingFileError, UnfinishedError
from transforms.core.progress import bar
from transforms.core.shards import StageFolder, read_commits
from transforms.core.stages import StageOutput, find_outputs
from transforms.verify import Problem, Verification, verify

ABANDONED_S = 3600.0
"""Age after which an unfinished file that nobody writes to belongs to a dead process."""


class VerifyConfig(Config):
    """Settings of `verify`."""

    run: str = no_fingerprint()
    """Folder or URL of the run."""
    stages: tuple[str, ...] | None = None
    """Folders of the run to check, for instance [captions,images]; null checks all."""
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
        UnfinishedError: Something is wrong; the message says how to continue.
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
    rows = []
    num_problems, num_abandoned = 0, 0
    damaged: dict[str, set[int]] = {}
    for name in wanted:
        problems, abandoned = _check(config, outputs, name)
        for problem in problems[: config.max_shown]:
            print(f"{name}/{problem.path}: {problem.what}")
        shards = {p.damaged_shard for p in problems if p.damaged_shard is not None}
        if config.repair:
            _repair(outputs[name], shards, abandoned)
        if shards:
            damaged[name] = shards
        num_problems += len(problems)
        num_abandoned += len(abandoned)
        rows.append([name, f"{outputs[name].num_shards:,}", f"{len(problems) or 'none'}"])
    align = ("left", "right", "left")
    headers = ("stage", "shards", "problems")
    print(tabulate(rows, headers, "plain", colalign=align, disable_numparse=True))
    if num_problems:
        commands = dict.fromkeys(c for name in damaged for c in _commands(outputs[name].folder))
        num_damaged = sum(map(len, damaged.values()))
        advice = _advice(config.repair, num_damaged, num_abandoned, list(commands))
        raise UnfinishedError(f"{num_problems:,} problems in {config.run}: {advice}")


def painted_twice(outputs: Mapping[str, StageOutput], name: str) -> Iterator[Problem]:
    """Report records of a retry that are not dead letters of what it retries.

    They exist twice: a shard was made again after its dead letters had been painted by the retry.

    Args:
        outputs: All stages and retries of the run, by the name of their folder.
        name: The stage or retry to check.
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
        return  # Reported with its shard, or not known yet.
    if len(failed) != num_failed:
        return  # Reported with its shard.
    expected_ids = outputs[name].expected_ids()
    painted = [key for n in range(outputs[name].num_shards) for key in expected_ids(n) or ()]
    num_twice = len(set(painted) - set(failed))
    if num_twice:
        yield Problem(
            "captions",
            f"{num_twice:,} of its captions are painted twice, since a shard of what it retries "
            f"was made again: delete {outputs[name].folder.url} and the retries after it, then run "
            "images and retry-failed again",
        )


def abandoned_files(output: StageOutput, now: float) -> Iterator[str]:
    """Yield the unfinished files of dead processes in a stage, without its retries.

    Args:
        output: The stage.
        now: The time, in seconds since 1970.
    """
    for path, written in storage.list_unfinished(output.folder.url).items():
        if written < now - ABANDONED_S and not path.startswith("retry-"):
            yield path


def _check(
    config: VerifyConfig, outputs: Mapping[str, StageOutput], name: str
) -> tuple[list[Problem], list[str]]:
    """Return the problems of a stage, and the paths of the abandoned files among them."""
    output = outputs[name]
    shown = bar(output.num_shards, "shards", "verify")
    try:
        verification = Verification(output, output.expected_ids(), config.decode)
        problems = list(verify(verification, config.threads, shown.update))
    finally:
        shown.close()
    problems += painted_twice(outputs, name)
    abandoned = list(abandoned_files(output, time.time()))
    problems += [Problem(path, "was left unfinished by a process that died") for path in abandoned]
    return problems, abandoned


def _repair(output: StageOutput, shards: Iterable[int], abandoned: Iterable[str]) -> None:
    """Delete damaged shards and abandoned files.

    Args:
        output: The stage.
        shards: Numbers of the damaged shards.
        abandoned: Paths relative to the folder of the stage.
    """
    folder = output.folder
    for shard in shards:
        if folder.is_retry:
            # The index of the stage also lists the shards of its retries.
            stage = StageFolder(folder.parent_url, folder.kind)
            storage.delete(stage.success_url)
            storage.delete(stage.index_url)
        # In the reverse of the order in which they were written.
        for url in (
            folder.success_url,
            folder.index_url,
            folder.commit_url(shard),
            folder.failures_url(shard),
            folder.shard_url(shard),
        ):
            storage.delete(url)
    for path in abandoned:
        storage.delete(storage.join(folder.url, path))


def _commands(folder: StageFolder) -> list[str]:
    """Return the commands that make deleted shards of a stage or of a retry again."""
    # A retry only starts once the stage has an index.
    return [folder.kind.command, folder.command] if folder.is_retry else [folder.command]


def _advice(repair: bool, num_damaged: int, num_abandoned: int, commands: list[str]) -> str:
    """Return what was deleted or has to be deleted, and which commands to run.

    Args:
        repair: Whether it is deleted already.
        num_damaged: Number of damaged shards.
        num_abandoned: Number of unfinished files of processes that died.
        commands: Commands that make the damaged shards again.
    """
    if not num_damaged and not num_abandoned:
        return "do what the lines say, or run the stage again, which finishes unfinished work"
    damaged = f"{num_damaged:,} shards are damaged" if num_damaged else ""
    left = f"{num_abandoned:,} files were left unfinished" if num_abandoned else ""
    what = " and ".join(part for part in (damaged, left) if part)
    again = f"run {', then '.join(commands)} again to make the shards" if commands else ""
    if repair:
        return f"{what} and deleted; {again + ', then verify' if again else 'verify again'}"
    then = f", then {again}" if again else ""
    return f"{what}; verify with repair=true, which deletes them{then}"
