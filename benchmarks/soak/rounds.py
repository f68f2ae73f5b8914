"""A round of the soak: a run that faults strike, the printed remedies, and the comparison."""

import contextlib
import hashlib
import io
import random
import shutil
import time
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks.soak.damage import damage, what
from benchmarks.soak.faults import (
    DISK_BYTES,
    SCRATCH_BYTES,
    SmallDisk,
    Surroundings,
    disturb,
)
from benchmarks.soak.person import (
    COMMAND_S,
    AnotherRunError,
    GaveUpError,
    Person,
    Problem,
    wait_for_all,
)
from benchmarks.soak.proxy import Troubles
from benchmarks.soak.servers import BUCKET
from transforms.core import storage
from transforms.core.errors import StorageError

JOBS = ("captions", "curate", "images")
STAGES = {"captions": "captions-raw", "curate": "captions", "images": "images"}


@dataclass(frozen=True)
class Kind:
    """A kind of run: its commands, and the files of an undisturbed one.

    Attributes:
        name: Name of the source of captions: "server", "vllm" or "words".
        jobs: Job -> config and overrides.
        asks_server: True if the captions come from the language-model server.
        digests: Path of a file -> checksum after the undisturbed run.
        work_s: Job -> seconds from its first output to its end.
    """

    name: str
    jobs: Mapping[str, Sequence[str]]
    asks_server: bool
    digests: dict[str, str] = field(default_factory=dict)
    work_s: dict[str, float] = field(default_factory=dict)


@dataclass
class Round:
    """Result of a round; a line of the log of rounds."""

    number: int
    seed: int
    storage: str
    captions: str
    seconds: float = 0.0
    starts: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    remedies: dict[str, int] = field(default_factory=dict)
    problems: list[dict[str, str]] = field(default_factory=list)
    kept: str = ""

    def line(self) -> dict[str, Any]:
        """Return the round as JSON values."""
        return asdict(self)


def digests(run: str) -> dict[str, str]:
    """Return path -> SHA-256 of the shards, dead letters, plans and indices of a run.

    Of dead letters the record ids are compared. Their reasons are for people: they are lost if a
    worker dies before it has written them, and nothing notices a damaged letter in them.
    """
    compared = ("shard", "dead letters", "index", "_SUCCESS", "plan.json")
    names = [f"{s}/{n}" for s in STAGES.values() for n in sorted(storage.list_files(f"{run}/{s}"))]
    names = [name for name in names if what(name) in compared]
    with ThreadPoolExecutor(8) as pool:
        contents = pool.map(lambda name: storage.read_bytes(f"{run}/{name}"), names)
        return {n: _digest(n, c) for n, c in zip(names, contents, strict=True)}


def _digest(name: str, content: bytes) -> str:
    if what(name) == "dead letters":
        letters = pq.read_table(io.BytesIO(content), columns=["record_id"])
        content = repr(letters["record_id"].to_pylist()).encode()
    return hashlib.sha256(content).hexdigest()


def undisturbed(kind: Kind, folder: Path) -> None:
    """Make the run that nothing disturbs, and note its checksums and times."""
    person = Person(str(folder / "run"), kind.jobs, {"OMP_NUM_THREADS": "1"}, folder / "logs")
    try:
        _do_all(kind, person)
    finally:
        person.stop()


def _do_all(kind: Kind, person: Person) -> None:
    for job in JOBS:
        command = person.start(job)
        begun = time.monotonic()
        while command.is_running() and not command.has_begun():
            begun = time.monotonic()
            time.sleep(0.05)
        ended = person.end(command, 4 * COMMAND_S)
        if ended.code != 0:
            raise RuntimeError(f"the undisturbed run failed: {ended.said}, see {ended.log}")
        kind.work_s[job] = time.monotonic() - begun
    if (checked := person.verify()).code != 0 or person.problems:
        raise RuntimeError(f"the undisturbed run is wrong: {checked.said} {person.problems}")
    kind.digests.update(digests(person.run))


class Scene:
    """The run of a round and everything around it.

    Args:
        kind: Kind of the run.
        folder: Folder of the round, for disks and logs.
        number: Number of the round.
        gcs: Server of the run, None for a local disk.
        model: Server of the language model.
    """

    def __init__(
        self,
        kind: Kind,
        folder: Path,
        number: int,
        gcs: Troubles | None,
        model: Troubles | None,
    ) -> None:
        self.kind = kind
        disk = SmallDisk(folder / "disk", DISK_BYTES) if gcs is None else None
        scratch = SmallDisk(folder / "tmp", SCRATCH_BYTES)
        run = f"gs://{BUCKET}/round-{number:04d}" if disk is None else str(disk.path / "run")
        environment = {"TMPDIR": str(scratch.path), "OMP_NUM_THREADS": "1"}
        if gcs is not None:
            environment["STORAGE_EMULATOR_HOST"] = gcs.url
        self.around = Surroundings(run, disk, scratch, gcs, model if kind.asks_server else None)
        self.person = Person(run, kind.jobs, environment, folder / "logs")
        self._folder = folder

    def strike(self, generator: random.Random) -> None:
        """Run the stages under faults, damage the result, and do what the messages say."""
        for job in JOBS:
            if self.person.keeps and job != "images":
                continue
            first = []
            for _ in range(generator.choice((1, 1, 2))):  # Some stages are struck twice.
                workers = [self.person.start(job) for _ in range(2)]
                work_s = self.kind.work_s[job]
                disturb(workers, self.around, job, work_s, generator)
                first = wait_for_all(self.person, workers, 30.0, killed=True)
                if any(ended.code == 0 for ended in first):
                    break
            self.person.complete(job, first)
        for _ in range(generator.choice((0, 1, 1, 2, 3))):
            done = damage(self.around.run, generator)
            if done is not None:
                self.around.counts[done] += 1
        self._reach_health()

    def start_over(self) -> None:
        """Make another run, without faults."""
        self.person.start_over()
        for job in JOBS:
            self.person.complete(job, [])
        self._reach_health()

    def _reach_health(self) -> None:
        """Verify and follow until nothing is wrong; a person then runs the last stage once more."""
        checked = self.person.verify()
        while checked.code != 0:
            self.person.heal(checked)
            checked = self.person.verify()
        self.person.complete("images", [])

    def compare(self) -> list[Problem]:
        """Return what differs from the undisturbed run."""
        expected, found = dict(self.kind.digests), digests(self.person.run)
        if self.person.keeps:  # Raw captions are given up, as the message says.
            expected, found = (
                {name: value for name, value in of.items() if not name.startswith("captions-raw/")}
                for of in (expected, found)
            )
        lost = sorted(expected.keys() - found.keys())
        more = sorted(found.keys() - expected.keys())
        other = sorted(n for n in expected.keys() & found.keys() if expected[n] != found[n])
        return [
            *(Problem("loss", f"{name} is missing") for name in lost),
            *(Problem("unknown file", name) for name in more),
            *(Problem("bytes", f"{name} differs") for name in other),
        ]

    def keep(self, target: Path) -> None:
        """Copy run and logs for the person who looks for the cause."""
        target.mkdir(parents=True)
        shutil.copytree(self._folder / "logs", target / "logs")
        run = self.person.run
        for name in storage.list_files(run):
            path = target / "run" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(storage.read_bytes(f"{run}/{name}"))

    def close(self) -> None:
        """Kill what still runs, and delete the run."""
        self.person.stop()
        self.around.heal()
        for disk in (self.around.disk, self.around.scratch):
            if disk is not None:
                disk.close()
        shutil.rmtree(self._folder, ignore_errors=True)
        if self.around.disk is None:
            with contextlib.suppress(StorageError):  # Ctrl-C ends the server, too.
                storage.delete_folder(self.around.run)
                storage.delete_folder(self.person.run)


def run_round(
    kind: Kind,
    out: Path,
    number: int,
    seed: int,
    gcs: Troubles | None,
    model: Troubles | None,
) -> Round:
    """Do one round."""
    done = Round(number, seed, "local" if gcs is None else "gcs", kind.name)
    generator = random.Random(f"{seed} {number}")
    started = time.monotonic()
    scene = Scene(kind, out / f"round-{number:04d}", number, gcs, model)
    person = scene.person
    try:
        try:
            scene.strike(generator)
        except AnotherRunError:
            scene.start_over()
        person.problems += scene.compare()
    except GaveUpError as error:
        person.problems.append(Problem("remedy", str(error)))
    except Exception as error:  # The soak goes on, whatever is wrong with a round or with itself.
        text = "".join(traceback.format_exception(error))
        (scene.person.logs / "soak.log").write_text(text)
        person.problems.append(Problem("soak", f"{type(error).__name__}: {error}", "soak.log"))
    finally:
        done.seconds = round(time.monotonic() - started, 1)
        done.starts = person.starts
        done.faults = dict(Counter(scene.around.counts))
        done.remedies = dict(person.remedies)
        done.problems = [asdict(problem) for problem in person.problems]
        if person.problems:
            person.stop()
            scene.around.heal()
            done.kept = str(out / "failures" / f"round-{number:04d}")
            scene.keep(Path(done.kept))
        scene.close()
    return done
