"""Small images stage for fault tests: it suffers a fault, and must end as if nothing happened."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pipelines.__main__ import main
from tests.support.captions import make_captions, write_captions
from tests.support.warm_process import WarmProcess
from transforms.core.index import read_index, read_success
from transforms.core.shards import StageFolder
from transforms.core.stages import STAGES

NUM_CAPTIONS = 20
CAPTIONS_PER_SHARD = 2
NUM_SHARDS = NUM_CAPTIONS // CAPTIONS_PER_SHARD


class Matrix:
    """The images stage of a run.

    Attributes:
        run: Folder or URL of the run.
        config: Config file of the stage.
        undisturbed: Checksums of the shards of the same stage without a fault.
    """

    def __init__(
        self,
        run: str,
        config: Path,
        undisturbed: list[str],
        num_captions: int = NUM_CAPTIONS,
        **engine: Any,
    ) -> None:
        self.run = run
        self.config = config
        self.undisturbed = undisturbed
        write_captions(f"{run}/captions", [make_captions(num_captions)])
        settings = {
            "run": run,
            "model": "builtin:tiny-sd",
            "captions_per_shard": CAPTIONS_PER_SHARD,
            "engine": engine,
            "generator": {"num_steps": 1, "size": 32, "stored_size": 32},
        }
        config.write_text(yaml.safe_dump(settings))

    def start(
        self,
        fault: str,
        environment: Mapping[str, str] | None = None,
        job: Sequence[str] | None = None,
    ) -> WarmProcess:
        """Start the stage in its own process, with a fault of `tests.support.fault_process`.

        Args:
            fault: Name of the fault and its argument.
            environment: Further environment variables.
            job: Name and arguments of another job.
        """
        job = ["images", str(self.config)] if job is None else job
        command = ["tests.support.fault_process", fault, *job]
        return WarmProcess(*command, environment={"OMP_NUM_THREADS": "1", **(environment or {})})

    def suffer(
        self,
        fault: str,
        environment: Mapping[str, str] | None = None,
        job: Sequence[str] | None = None,
    ) -> tuple[int, str]:
        """Run the stage, or another job, with a fault; return the exit code and standard error."""
        process = self.start(fault, environment, job)
        errors = process.communicate()[1]
        return process.wait(), errors

    def again(self, *arguments: str) -> int:
        """Run the stage in this process without a fault; return the exit code."""
        return main(["images", str(self.config), *arguments])

    def verify(self, *arguments: str) -> int:
        """Run the `verify` command; return the exit code."""
        return main(["verify", self.run, *arguments])

    def checksums(self) -> list[str]:
        """Return the checksums of the shards from the index."""
        index = read_index(f"{self.run}/images/index.parquet")
        return [str(checksum) for checksum in index.table["sha256"].to_pylist()]

    def ends_as_undisturbed(self, *arguments: str) -> None:
        """Check that another run completes the stage with the undisturbed bytes."""
        assert self.again(*arguments) == 0
        assert read_success(StageFolder(f"{self.run}/images", STAGES["images"])) is not None
        assert self.checksums() == self.undisturbed
        assert self.verify() == 0
