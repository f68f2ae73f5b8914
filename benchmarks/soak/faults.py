"""Random faults for the two workers of a stage: signals, full disks, servers in trouble, damage."""

import contextlib
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.soak.commands import Command
from benchmarks.soak.damage import damage
from benchmarks.soak.proxy import SILENCE_S, TROUBLES, UPLOAD_CUT_OFF, Troubles

DISK_BYTES, SCRATCH_BYTES = 24 << 20, 96 << 20
LONG_STOP_S = SILENCE_S + 5
"""A stop that is longer than every time limit in the configs of the soak."""
ATTEMPT_S = 480.0
"""Seconds after which two workers that are still running hang."""


class SmallDisk:
    """A file system of its own in memory, which can be full.

    Attributes:
        path: Folder.
        works: True if this machine allows the mount; otherwise `path` is a plain folder.
    """

    def __init__(self, path: Path, num_bytes: int) -> None:
        self.path = path
        path.mkdir(parents=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", str(path)]
        self.works = subprocess.run(command, capture_output=True).returncode == 0
        self._ballast = path / ".ballast"

    def fill(self) -> None:
        """Fill the disk to the last byte."""
        with contextlib.suppress(OSError), self._ballast.open("ab", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    def free(self) -> None:
        """Make space again."""
        self._ballast.unlink(missing_ok=True)

    def close(self) -> None:
        """Unmount it."""
        if self.works:
            subprocess.run(["umount", "-l", str(self.path)], capture_output=True)


@dataclass
class Surroundings:
    """Everything around the workers of a round that can fail.

    Attributes:
        run: Folder or URL of the run.
        disk: Disk of the run; None on a server.
        scratch: Disk of temporary files.
        gcs: Troubles of the server of the run; None on a disk.
        model: Troubles of the server of the language model; None if nobody asks it.
    """

    run: str
    disk: SmallDisk | None
    scratch: SmallDisk
    gcs: Troubles | None
    model: Troubles | None
    counts: Counter[str] = field(default_factory=Counter)

    def heal(self) -> None:
        """End what a person would repair: full disks, servers in trouble."""
        for disk in (self.disk, self.scratch):
            if disk is not None:
                disk.free()
        for server in (self.gcs, self.model):
            if server is not None:
                server.trouble = None


@dataclass(order=True)
class Strike:
    """Something that happens at a time, in seconds since the workers have begun."""

    time_s: float
    action: Callable[[], None] = field(compare=False)


def disturb(
    workers: Sequence[Command],
    around: Surroundings,
    stage: str,
    work_s: float,
    generator: random.Random,
) -> None:
    """Let random faults strike the workers of a stage until all of them have ended.

    Args:
        workers: The workers, just started.
        around: Disks and servers that can fail.
        stage: Command of the stage.
        work_s: Seconds that the stage takes undisturbed, after its imports.
        generator: Chooses faults and times.
    """
    strikes = sorted(_choose(workers, around, stage, work_s, generator))
    started = begun = time.monotonic()
    while any(worker.is_running() for worker in workers):
        now = time.monotonic()
        if now > started + ATTEMPT_S:
            break
        if not any(worker.has_begun() for worker in workers):
            begun = now
        while strikes and strikes[0].time_s <= now - begun:
            strikes.pop(0).action()
        time.sleep(0.02)
    around.heal()
    for worker in workers:
        worker.send(signal.SIGCONT)


def _choose(
    workers: Sequence[Command],
    around: Surroundings,
    stage: str,
    work_s: float,
    generator: random.Random,
) -> Iterator[Strike]:
    kinds = ["kill", "term", "int", "stop", "stop for long", "kill both", "damage"]
    kinds += ["scratch disk full"] * around.scratch.works
    kinds += ["disk full"] * (2 if around.disk is not None and around.disk.works else 0)
    kinds += ["gcs"] * (3 if around.gcs is not None else 0)
    kinds += ["model"] * (2 if around.model is not None and stage == "captions" else 0)
    for kind in generator.choices(kinds, k=generator.choice((1, 1, 2, 2, 3))):
        at = generator.uniform(0.0, work_s)
        yield from _strikes(kind, at, workers, around, generator)


def _strikes(
    kind: str,
    at: float,
    workers: Sequence[Command],
    around: Surroundings,
    generator: random.Random,
) -> Iterator[Strike]:
    """Yield a fault and, if it does not last, its end."""
    signals = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "int": signal.SIGINT}
    worker = generator.choice(workers)
    window = generator.uniform(0.5, 6.0)
    if kind in signals:
        yield Strike(at, lambda: _signal([worker], signals[kind], around))
    elif kind == "kill both":
        yield Strike(at, lambda: _signal(workers, signal.SIGKILL, around))
    elif kind in ("stop", "stop for long"):
        seconds = LONG_STOP_S if kind == "stop for long" else window
        name = f"SIGSTOP for {'25 s' if kind == 'stop for long' else 'some seconds'}"
        yield Strike(at, lambda: _signal([worker], signal.SIGSTOP, around, name))
        yield Strike(at + seconds, lambda: worker.send(signal.SIGCONT))
    elif kind == "damage":
        seed = generator.getrandbits(32)
        yield Strike(at, lambda: _damage(around, random.Random(seed)))
    elif kind in ("disk full", "scratch disk full"):
        disk = around.disk if kind == "disk full" else around.scratch
        assert disk is not None
        yield Strike(at, lambda: _fill(disk, kind, around))
        yield Strike(at + window, disk.free)
    else:
        server = around.gcs if kind == "gcs" else around.model
        assert server is not None
        trouble = generator.choice([*TROUBLES, *([UPLOAD_CUT_OFF] * 2 if kind == "gcs" else [])])
        share = generator.choice((0.05, 0.2, 0.5, 1.0))
        if trouble == "silence":
            share = min(share, 0.2)
        name = "GCS server" if kind == "gcs" else "language-model server"
        yield Strike(at, lambda: _trouble(server, trouble, share, f"{name}: {trouble}", around))
        yield Strike(at + 3 * window, lambda: setattr(server, "trouble", None))


def _signal(
    workers: Sequence[Command], number: signal.Signals, around: Surroundings, name: str = ""
) -> None:
    for worker in workers:
        around.counts[name or number.name] += worker.is_running()
        worker.send(number)


def _damage(around: Surroundings, generator: random.Random) -> None:
    done = damage(around.run, generator)
    if done is not None:
        around.counts[done] += 1


def _fill(disk: SmallDisk, kind: str, around: Surroundings) -> None:
    around.counts[kind] += 1
    disk.fill()


def _trouble(server: Troubles, trouble: str, share: float, name: str, around: Surroundings) -> None:
    around.counts[name] += 1
    server.share, server.trouble = share, trouble
