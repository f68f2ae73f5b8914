"""Check every file of a run against its commit records, its index and its captions.

`python -m pipelines verify RUN` reads all shards, so it takes as long as downloading them. It
changes nothing, unless `repair=true`: then it deletes damaged shards, dead letters, commit records
and indices, so that the command of the stage makes them again, and unfinished files of processes
that died. A shard whose commit record or dead letters alone are damaged stays, and is adopted.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pydantic import NonNegativeInt, PositiveInt
from tabulate import tabulate

from transforms.core import storage
from transforms.core.config import Config, Place, no_fingerprint
from transforms.core.dead_letters import dead_letters
from transforms.core.errors import ConfigError, DamagedFileError, MissingFileError, UnfinishedError
from transforms.core.progress import bar
from transforms.core.shards import StageFolder, read_commits
from transforms.core.stages import StageOutput, survey
from transforms.verify import Problem, Verification, verify

ABANDONED_S = 3600.0
"""Age after which an unfinished file that nobody writes to belongs to a dead process."""


class VerifyConfig(Config):
    """Settings of `verify`."""

    run: Place = no_fingerprint()
    """Folder or URL of the run."""
    stages: tuple[str, ...] | None = None
    """Folders of the run to check, for instance [captions,images]; null checks all."""
    decode: bool = True
    """Decode every image: most of the time of a check on local disk."""
    threads: PositiveInt = 8
    """Shards read at once; each is held in memory as a whole."""
    repair: bool = False
    """Delete damaged files, so that they are made again, and unfinished files an hour old."""
    max_shown: NonNegativeInt = 20
    """Problems shown of each stage; all are counted."""


CONFIG = VerifyConfig


def run(config: VerifyConfig, flags: Sequence[str]) -> None:
    """Check a run and print a table; Beam's flags have no effect.

    Raises:
        ConfigError: There is nothing to check.
        UnfinishedError: Something is wrong; the message says how to continue.
    """
    readable, unreadable = survey(config.run)
    outputs = {_name(config, output.folder): output for output in readable}
    unknown = {
        _name(config, folder): _Findings(folder, [Problem(file, what, by_hand=True)], [])
        for folder, file, what in unreadable
    }
    wanted = [*outputs, *unknown] if config.stages is None else config.stages
    absent = [name for name in wanted if name not in outputs and name not in unknown]
    if not outputs and not unknown:
        raise ConfigError(
            f"{config.run} holds no stage that was started: there is nothing to verify"
        )
    if absent:
        raise ConfigError(
            f"key 'stages' names {absent[0]!r}: {config.run} holds {', '.join(outputs)}"
        )
    rows = []
    found = []
    for name in wanted:
        is_known = name in outputs
        findings = _check(config, outputs, name) if is_known else unknown[name]
        for problem in findings.problems[: config.max_shown]:
            print(f"{name}/{problem.path}: {problem.what}")
        if config.repair:
            _repair(findings)
        found.append(findings)
        number = len(findings.problems)
        num_shards = f"{outputs[name].num_shards:,}" if is_known else "not known"
        rows.append([name, num_shards, f"{number or 'none'}"])
    align = ("left", "right", "left")
    headers = ("stage", "shards", "problems")
    print(tabulate(rows, headers, "plain", colalign=align, disable_numparse=True))
    num_problems = sum(len(findings.problems) for findings in found)
    if num_problems:
        advice = _advice(config.repair, found)
        raise UnfinishedError(f"{num_problems:,} problems in {config.run}: {advice}")


def _name(config: VerifyConfig, folder: StageFolder) -> str:
    return folder.url.removeprefix(config.run).strip("/")


@dataclass(frozen=True)
class _Findings:
    """What is wrong with a stage.

    Attributes:
        folder: Folder of the stage.
        problems: All problems.
        abandoned: Paths of unfinished files of dead processes, relative to the folder; each is a
            problem, too.
    """

    folder: StageFolder
    problems: Sequence[Problem]
    abandoned: Sequence[str]

    @property
    def damaged(self) -> set[int]:
        """Numbers of the shards that are damaged, or whose dead letters or commit records are."""
        return {p.damaged_shard for p in self.problems if p.damaged_shard is not None}

    @property
    def has_wrong_index(self) -> bool:
        """Whether the index or `_SUCCESS` is damaged or missing."""
        return any(p.spoilt and p.damaged_shard is None for p in self.problems)

    @property
    def needs_command(self) -> bool:
        """Whether the command of the stage has to run again."""
        return bool(self.damaged) or any(p.unfinished for p in self.problems)


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
        expected_ids = outputs[name].expected_ids()
        painted = [key for n in range(outputs[name].num_shards) for key in expected_ids(n) or ()]
    except (DamagedFileError, MissingFileError):
        return  # Reported with its shard or captions, or not known yet.
    if len(failed) != num_failed:
        return  # Reported with its shard.
    num_twice = len(set(painted) - set(failed))
    if num_twice:
        yield Problem(
            "captions",
            f"{num_twice:,} of its captions are painted twice, since a shard of what it retries "
            f"was made again: delete {outputs[name].folder.url} and the retries after it, then run "
            f"{outputs[name].folder.commands}",
            by_hand=True,
        )


def abandoned_files(output: StageOutput) -> Iterator[str]:
    """Yield the unfinished files of dead processes in a stage, without its retries."""
    for path in storage.list_abandoned(output.folder.url, ABANDONED_S):
        if not path.startswith("retry-"):
            yield path


def _check(config: VerifyConfig, outputs: Mapping[str, StageOutput], name: str) -> _Findings:
    """Find the problems of a stage or retry of a run."""
    output = outputs[name]
    shown = bar(output.num_shards, "shards", "verify")
    try:
        verification = Verification(output, output.expected_ids(), config.decode)
        problems = list(verify(verification, config.threads, shown.update))
    finally:
        shown.close()
    problems += painted_twice(outputs, name)
    abandoned = list(abandoned_files(output))
    problems += [Problem(path, "was left unfinished by a process that died") for path in abandoned]
    return _Findings(output.folder, problems, abandoned)


def _repair(findings: _Findings) -> None:
    """Delete damaged and abandoned files of a stage.

    The index goes first, so that nobody reads it meanwhile; the commit record of a shard goes after
    its other files (see `commit.discard_shard`).
    """
    folder = findings.folder
    spoilt = {path for problem in findings.problems for path in problem.spoilt}
    folders = [folder]
    if folder.is_retry:
        # The index of the stage also lists the shards of its retries.
        folders.append(StageFolder(folder.parent_url, folder.kind))
    if any(path.startswith(("shards/", "_SUCCESS")) for path in spoilt):
        for each in folders:
            storage.delete(each.success_url)
            storage.delete(each.index_url)
    order = ("_SUCCESS", "index.parquet", "shards", "failures", "commits")
    for path in sorted(spoilt, key=lambda path: (order.index(path.partition("/")[0]), path)):
        storage.delete(storage.join(folder.url, path))
    for path in findings.abandoned:
        storage.delete(storage.join(folder.url, path))


def _advice(repair: bool, found: Sequence[_Findings]) -> str:
    """Return what is damaged or deleted, and which commands to run.

    Args:
        repair: Whether damaged and abandoned files are deleted already.
        found: What is wrong with each stage.
    """
    num_damaged = sum(len(findings.damaged) for findings in found)
    num_abandoned = sum(len(findings.abandoned) for findings in found)
    num_wrong = sum(findings.has_wrong_index for findings in found)
    what = " and ".join(
        f"{number:,} {are}"
        for number, are in (
            (num_damaged, "shards are damaged"),
            (num_wrong, "indices are wrong"),
            (num_abandoned, "files were left unfinished"),
        )
        if number
    )
    steps = ["do what the lines say"] if any(p.by_hand for f in found for p in f.problems) else []
    if not repair and (num_damaged or num_abandoned):
        steps.append(f"run {found[0].folder.repair_command}, which deletes them")
    commands = dict.fromkeys(c for f in found if f.needs_command for c in _commands(f.folder))
    if commands:
        steps.append(f"run {', then '.join(commands)} again")
    steps += [
        f"run {findings.folder.index_command}"
        for findings in found
        if findings.has_wrong_index and not findings.needs_command
    ]
    steps.append("verify again" if len(steps) == 0 else "verify")
    deleted = "; the files are deleted" if repair and what else ""
    return f"{what}{deleted}{'; ' if what else ''}{', then '.join(steps)}"


def _commands(folder: StageFolder) -> list[str]:
    """Return the commands that make deleted shards of a stage or of a retry again."""
    # A retry only starts once the stage has an index.
    return [folder.kind.command, folder.command] if folder.is_retry else [folder.command]
