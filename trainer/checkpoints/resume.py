"""The checkpoint from which all ranks of a training continue.

Rank 0 chooses the checkpoint. On each machine one rank downloads it, if it is not on a disk of that
machine, and checks all of its bytes. Then all ranks map that file into memory, so a machine holds
it once, whatever the number of its GPUs.
"""

import contextlib
from collections.abc import Iterator

from trainer import distributed
from trainer.checkpoints.files import (
    Checkpoint,
    map_checkpoint,
    newest_checkpoint,
    open_checkpoint,
)
from transforms.core import storage
from transforms.core.errors import ConfigError
from transforms.core.storage.local import temporary_name


def check_shared_folder(folder: str) -> None:
    """Check that all ranks see what rank 0 writes to a folder.

    Raises:
        StorageError: The folder cannot be written or read.
        ConfigError: Other ranks do not see it: each machine has a folder of this name.
    """
    if distributed.world_size() == 1:
        return
    main = distributed.rank() == 0
    url = storage.join(folder, distributed.gather_objects(temporary_name("shared"))[0])
    distributed.run_on_all_ranks(lambda: main and storage.publish_bytes(b"", url))
    seen = distributed.gather_objects(distributed.run_on_all_ranks(lambda: storage.exists(url)))
    if main:
        storage.delete(url)
    blind = [str(rank) for rank, sees in enumerate(seen) if not sees]
    if blind:
        raise ConfigError(
            f"key 'run': rank 0 writes to {folder}, but ranks {', '.join(blind)} do not see it: "
            "expected a folder that all machines share, or gs://..."
        )


@contextlib.contextmanager
def newest_on_all_ranks(folder: str) -> Iterator[Checkpoint | None]:
    """Open the newest whole checkpoint in a folder, the same one on every rank; None without any.

    Raises:
        StorageError: The checkpoint cannot be read.
        ConfigError: There are checkpoints, but all of them are damaged.
    """
    rank, first = distributed.rank(), distributed.first_rank_here()
    with contextlib.ExitStack() as stack:

        def choose() -> Checkpoint | None:
            return stack.enter_context(newest_checkpoint(folder)) if rank == 0 else None

        def download(url: str) -> Checkpoint | None:
            return here or (stack.enter_context(open_checkpoint(url)) if rank == first else None)

        def map_file(url: str, path: str) -> Checkpoint:
            return here or Checkpoint(url, path, map_checkpoint(path, url))

        here = distributed.run_on_all_ranks(choose)
        url = distributed.gather_objects(here.url if here else None)[0]
        if url is not None:
            here = distributed.run_on_all_ranks(lambda: download(url))
            path = distributed.gather_objects(here.path if here else "")[first]
            # All ranks have mapped the file before the copy may be removed.
            here = distributed.run_on_all_ranks(lambda: map_file(url, path))
        yield here
