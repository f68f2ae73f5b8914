"""A small run of captions, curated captions and images, and a person who does what messages say."""

import contextlib
import io
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.soak.remedies import steps
from pipelines.__main__ import jobs, main
from tests.support.stage_content import content
from trainer.data.shard_reader import ShardReader
from transforms.core import storage
from transforms.core.errors import ConfigError, DamagedFileError, StorageError

TEXT_JOBS = ("captions", "curate")
STAGES = ("captions-raw", "captions", "images")
NUM_CAPTIONS, PER_SHARD, NUM_RAW_SHARDS = 16, 8, 3

TEXTS = [f"a cat that sits on chair number {number}" for number in range(40)]


def write_configs(folder: Path, texts: Sequence[str] = TEXTS) -> None:
    """Write the configs of the jobs, and the captions; each command adds its `run`."""
    (folder / "given.txt").write_text("\n".join(texts))
    text = {
        "run": "",
        "num_captions": NUM_CAPTIONS,
        "captions_per_shard": PER_SHARD,
        "captions": {
            "variant": "file",
            "captions_file": str(folder / "given.txt"),
            "oversampling": NUM_RAW_SHARDS * PER_SHARD / NUM_CAPTIONS,
        },
        "curation": {"near_duplicate_threshold": None},
    }
    images = {
        "run": "",
        "model": "builtin:tiny-sd",
        "captions_per_shard": 2,
        "generator": {"num_steps": 1, "size": 32, "stored_size": 32},
    }
    (folder / "text.yaml").write_text(yaml.safe_dump(text))
    (folder / "images.yaml").write_text(yaml.safe_dump(images))


class Person:
    """Operates a run: starts commands, and then does literally what their last line says.

    Attributes:
        run: Folder of the run.
        code: Exit code of the last command.
        said: Last line of the last command.
        log: All lines of all commands.
    """

    def __init__(self, run: str, configs: Path) -> None:
        self.run = run
        self.configs = configs
        self.code = 0
        self.said = ""
        self.log: list[str] = []
        self._overrides: Sequence[str] = ()
        self._lines: list[str] = []
        self._command: Callable[[], int] = lambda: 0

    def copy(self, run: str) -> "Person":
        """Copy the run; return a person who operates the copy."""
        shutil.copytree(self.run, run)
        return Person(run, self.configs)

    def do(self, job: str, *arguments: str) -> int:
        """Run a job with its config, or on the run."""
        target = [self.run]
        if not jobs()[job].takes_run:
            config = "text.yaml" if job in TEXT_JOBS else "images.yaml"
            target = [str(self.configs / config), f"run={self.run}"]
        self._overrides = arguments
        return self._start(lambda: main([job, *target, *arguments]))

    def train(self) -> int:
        """Read all images as the trainer does."""

        def read() -> int:
            try:
                list(ShardReader(f"{self.run}/images/index.parquet", images_per_caption=4))
            except (ConfigError, StorageError, DamagedFileError) as error:
                print(error)
                return 1
            return 0

        return self._start(read)

    def heal(self, most: int = 8) -> None:
        """Do what the messages say until a command succeeds."""
        for _ in range(most):
            if self.code == 0:
                return
            before = self.said
            self.follow(before)
            assert self.code == 0 or self.said != before, f"it leads in a circle: {before}"
        raise AssertionError(f"after {most} remedies: {self.said}")

    def follow(self, message: str, path: str = "") -> None:
        """Do what a message says, step by step; `path` is what "it" means in it."""
        todo = list(steps(message, path))
        by_lines = "do what the lines say" in message
        assert todo or by_lines, f"it says nothing to do: {message}"
        same, lines, overrides = self._command, self._lines, self._overrides
        if by_lines:
            for line in lines:
                file, _, what = line.partition(": ")
                if any(steps(what)):
                    self.follow(what, f"{self.run}/{file}")
        for step in todo:
            if (by_lines or step is not todo[0]) and self.code != 0:
                self.heal()
            if step.action == "delete":
                self._delete(step.path, step.and_later)
                self.code = 0
            elif step.action == "same":
                self._start(same)
            elif step.action == "verify":
                self.do("verify")
            else:
                job, *arguments = step.words
                if jobs()[job].takes_run:
                    run, *arguments = arguments
                    assert run == self.run, "the message names another run"
                given = overrides if step.settings == "the same settings" else [step.settings]
                self.do(job, *arguments, *filter(None, given))

    def is_healthy(self, undisturbed: "Person | None") -> None:
        """Assert that `verify` finds nothing, and that all bytes are those of another run."""
        assert self.do("verify") == 0, self._lines
        for stage in STAGES if undisturbed else ():
            assert undisturbed is not None
            assert content(f"{self.run}/{stage}") == content(f"{undisturbed.run}/{stage}"), stage

    def _start(self, command: Callable[[], int]) -> int:
        self._command = command
        err, out = io.StringIO(), io.StringIO()
        with contextlib.redirect_stderr(err), contextlib.redirect_stdout(out):
            self.code = command()
        self._lines = out.getvalue().splitlines()
        self.log += [*err.getvalue().splitlines(), *self._lines]
        spoken = err.getvalue().strip().splitlines() or self._lines
        self.said = spoken[-1] if spoken else ""
        return self.code

    def _delete(self, path: str, and_later: bool) -> None:
        assert storage.exists(path), f"there is no {path} to delete"
        folder, _, name = path.rpartition("/")
        if and_later:
            for number in range(int(name.removeprefix("retry-")), 10):
                storage.delete_folder(f"{folder}/retry-{number}")
        elif Path(path).is_dir():
            storage.delete_folder(path)
        else:
            storage.delete(path)


FAILING_SEEDS: set[int] = set()
"""The engine raises an error for images of these seeds."""


class Scene:
    """A copy of a run, and the bytes that it must have in the end.

    Attributes:
        bases: Runs to copy, by name.
        person: Operator of the copy.
        expected: The run whose bytes the copy must have in the end; None if they may differ.
        patch: Patches that are undone at the end of the test.
        tmp: Folder of the test.
    """

    def __init__(
        self,
        bases: Mapping[str, Person],
        seeds: Iterable[int],
        patch: pytest.MonkeyPatch,
        tmp: Path,
    ) -> None:
        self.bases = bases
        self.patch = patch
        self.tmp = tmp
        self._seeds = set(seeds)
        self.use("whole")

    def use(self, base: str) -> None:
        """Take a copy of a run: "whole", or "retried", where two captions failed at first."""
        self.expected: Person | None = self.bases[base]
        self.person = self.bases[base].copy(str(self.tmp / base))
        self.paint_everything(base == "whole")

    def paint_everything(self, everything: bool = True) -> None:
        """Choose whether the engine paints the captions that failed at first."""
        FAILING_SEEDS.clear()
        FAILING_SEEDS.update(() if everything else self._seeds)

    def url(self, path: str) -> str:
        return f"{self.person.run}/{path}"

    def delete(self, *paths: str) -> None:
        for path in paths:
            assert storage.exists(self.url(path)), path
            storage.delete(self.url(path))

    def delete_folders(self, *paths: str) -> None:
        for path in paths:
            storage.delete_folder(self.url(path))

    def change(self, path: str, change: Callable[[bytes], bytes]) -> None:
        storage.replace_bytes(change(storage.read_bytes(self.url(path))), self.url(path))

    def fail_once(self, owner: Any, name: str, error: Exception, of: str = "") -> None:
        """Let the first call of a function with `of` in an argument raise an error."""
        function = getattr(owner, name)
        failed: list[str] = []

        def wrapped(*arguments: Any, **named: Any) -> Any:
            if not failed and (not of or any(of in str(argument) for argument in arguments)):
                failed.append(name)
                raise error
            return function(*arguments, **named)

        self.patch.setattr(owner, name, wrapped)
