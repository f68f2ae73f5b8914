"""A person who operates a run, and does literally what the commands say."""

import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.soak.commands import Command, Ended
from benchmarks.soak.remedies import Step, name, steps
from transforms.core import storage

MOST_TIMES = 5
"""Times that a command may say the same before the messages lead in a circle."""
MOST_COMMANDS = 40
"""Commands after which a round that is not healthy yet has failed."""
COMMAND_S = 480.0
"""Time limit of a command without a fault."""
CODES = (0, 1, 2, 130, 143)
"""Exit codes that docs/operate.md explains."""
_KEEP = re.compile(r": either keep \S+, which is all that later stages read")


@dataclass(frozen=True)
class Problem:
    """Something that must not happen.

    Attributes:
        kind: Row of the table: "traceback", "loss", ...
        what: One line about it.
        log: Log of the command, if it is about one.
    """

    kind: str
    what: str
    log: str = ""


class AnotherRunError(Exception):
    """A message says that another run is needed, since nothing of this one can be kept."""


class GaveUpError(Exception):
    """The messages did not lead to a healthy run."""


class Person:
    """Starts the commands of a run and follows what they say.

    Attributes:
        run: Folder or URL of the run.
        remedies: Steps followed, by kind.
        starts: Processes started.
        problems: Problems found so far.
        logs: Folder of the logs of its commands.
        keeps: True once raw captions are lost and the curated ones stay, as a message said.
    """

    def __init__(
        self,
        run: str,
        jobs: Mapping[str, Sequence[str]],
        environment: Mapping[str, str],
        logs: Path,
    ) -> None:
        self.run = run
        self.remedies: Counter[str] = Counter()
        self.starts = 0
        self.problems: list[Problem] = []
        self.keeps = False
        self._jobs = jobs
        self._environment = environment
        self.logs = logs
        self._healed = 0
        self._kept: Ended | None = None
        self._said: Counter[tuple[str, ...]] = Counter()
        self._started: list[Command] = []
        logs.mkdir(parents=True, exist_ok=True)

    def start(self, job: str, *arguments: str) -> Command:
        """Start a command; jobs on the output of a run need no config."""
        self.starts += 1
        words = [*self._jobs[job], f"run={self.run}"] if job in self._jobs else [self.run]
        log = self.logs / f"{self.starts:03d}-{job}.log"
        command = Command(["pipelines", job, *words, *arguments], self._environment, log)
        self._started = [other for other in self._started if other.is_running()] + [command]
        return command

    def stop(self) -> None:
        """Kill the commands that are still running."""
        for command in self._started:
            command.kill()

    def end(self, command: Command, seconds: float, killed: bool = False) -> Ended:
        """Wait for a command; note a traceback, orphans, a hang and a wrong exit code as problems.

        Args:
            command: The command.
            seconds: Time limit.
            killed: True if a fault may have killed it.
        """
        ended = command.end(seconds)
        shown, log = " ".join(ended.words[1:3]), ended.log.name
        if ended.has_traceback:
            self.problems.append(Problem("traceback", f"{shown} printed a traceback", log))
        if ended.orphans:
            what = f"{shown} left {ended.orphans} processes"
            self.problems.append(Problem("orphans", what, log))
        if ended.hung:
            self.problems.append(Problem("hang", f"{shown} did not end", log))
        elif ended.code not in CODES and not (killed and ended.code == -9):
            what = f"{shown} ended with {ended.code}"
            self.problems.append(Problem("exit code", what, log))
        return ended

    def do(self, job: str, *arguments: str) -> Ended:
        """Run a command without a fault."""
        return self.end(self.start(job, *arguments), COMMAND_S)

    def complete(self, job: str, first: Sequence[Ended]) -> None:
        """Complete a stage after a first attempt: follow what is said, until its command says 0.

        Raises:
            GaveUpError: That does not come to an end.
        """
        failed = [ended for ended in first if ended.code != 0]
        if not failed and first:
            return
        if failed:
            self.heal(failed[0])
        while not self.keeps or job == "images":
            ended = self.do(job)
            if ended.code == 0:
                return
            self.heal(ended)

    def start_over(self) -> None:
        """Make another run, as a message says."""
        self.remedies["another run"] += 1
        self.run, self.keeps = f"{self.run}-again", False

    def verify(self) -> Ended:
        """Verify the run, or what is kept of it."""
        return self.do("verify", *(["stages=[captions,images]"] if self.keeps else []))

    def heal(self, ended: Ended) -> Ended:
        """Do what a command and those after it say until one succeeds.

        Raises:
            AnotherRunError: A message says that another run is the only way.
            GaveUpError: That does not come to an end, or a message says nothing to do.
        """
        while ended.code != 0:
            self._healed += 1
            if self._healed > MOST_COMMANDS:
                raise GaveUpError(f"after {MOST_COMMANDS} remedies: {ended.said}")
            self._said[(*ended.words, ended.said)] += 1
            if self._said[(*ended.words, ended.said)] > MOST_TIMES:
                raise GaveUpError(f"it leads in a circle: {ended.said}")
            if ended is self._kept:
                return ended  # Nothing to do; what is kept is verified without the rest.
            if _KEEP.search(ended.said):
                if self.keeps:  # The curated captions are lost as well.
                    raise AnotherRunError(ended.said)
                self.remedies["keep the curated captions"] += 1
                self.keeps, self._kept = True, ended
                return ended
            ended = self._follow(ended)
        return ended

    def _follow(self, ended: Ended) -> Ended:
        if ended.code == -9 or ended.hung:
            # It could say nothing. docs/operate.md: run the same command again.
            self.remedies["run the same command again (killed)"] += 1
            return self._again(ended)
        todo = list(steps(ended.said))
        if "do what the lines say" in ended.said:
            todo = [*self._of_lines(ended), *todo]
        if not todo:
            raise GaveUpError(f"the message names nothing to do: {ended.said} ({ended.log.name})")
        last = ended
        for number, step in enumerate(todo):
            if number and last.code != 0 and last is not ended:
                last = self.heal(last)
                if self.keeps:
                    return last
            self.remedies[name(step)] += 1
            if step.action == "delete":
                self._delete(step.path)
            elif step.action == "same":
                last = self._again(ended)
            elif step.action == "verify":
                last = self.verify()
            else:
                last = self._run(step)
        # After deleting alone, the person tries the command again.
        return self._again(ended) if last is ended else last

    def _of_lines(self, ended: Ended) -> list[Step]:
        found: list[Step] = []
        for line in ended.lines:
            file, _, what = line.partition(": ")
            if what:
                found += steps(what, f"{self.run}/{file}")
        return found

    def _again(self, ended: Ended) -> Ended:
        job = ended.words[1]
        known = [*self._jobs.get(job, []), self.run, f"run={self.run}"]
        return self.do(job, *(word for word in ended.words[2:] if word not in known))

    def _run(self, step: Step) -> Ended:
        job, *arguments = step.words
        if job not in self._jobs and arguments:
            run, *arguments = arguments
            if run != self.run:
                raise GaveUpError(f"a message names another run: {run}")
        if job == "verify" and self.keeps:
            arguments.append("stages=[captions,images]")
        return self.do(job, *arguments)

    def _delete(self, path: str) -> None:
        if not path.startswith(f"{self.run}/"):
            raise GaveUpError(f"a message says to delete {path}, which is not in the run")
        if not storage.exists(path):
            return  # A line may name a file that an earlier step has deleted.
        if Path(path).is_dir() or (not storage.is_local(path) and storage.list_files(path)):
            storage.delete_folder(path)
        else:
            storage.delete(path)


def wait_for_all(
    person: Person, workers: Sequence[Command], seconds: float, killed: bool
) -> list[Ended]:
    """Wait for several commands, together at most for some seconds."""
    deadline = time.monotonic() + seconds
    return [person.end(worker, deadline - time.monotonic(), killed) for worker in workers]
