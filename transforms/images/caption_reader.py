"""Random access to the captions of a complete stage, by their place in its index.

An image shard paints a span of captions; it is smaller than a caption shard and need not follow
one.
"""

from dataclasses import dataclass

from transforms.core.records import Caption, from_table
from transforms.core.shard_reader import RowReader
from transforms.core.shards import StageFolder
from transforms.core.stages import STAGES


@dataclass(frozen=True)
class CaptionRows:
    """The captions of a complete stage as one sequence. It pickles into a few bytes.

    Attributes:
        rows: Rows of the stage's shards.
    """

    rows: RowReader

    @classmethod
    def open(cls, url: str) -> "CaptionRows":
        """Open the captions in the folder of a stage.

        Raises:
            MissingFileError: The stage is not complete, or the folder is wrong.
            ConfigError: The folder holds no captions.
            DamagedFileError: The index is damaged.
        """
        return cls(RowReader.open(StageFolder(url, STAGES["captions"])))

    @property
    def index_sha256(self) -> str:
        """SHA-256 of the index. It identifies the captions and their order."""
        return self.rows.checksum

    @property
    def num_captions(self) -> int:
        """Captions in all shards."""
        return self.rows.num_rows

    def read(self, start: int, stop: int) -> list[Caption]:
        """Return the captions from global row `start` up to but not including `stop`."""
        return from_table(self.rows.read(start, stop), Caption)
