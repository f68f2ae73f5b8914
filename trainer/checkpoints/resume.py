"""How the ranks of a training find out together where it stands.

Rank 0 chooses the checkpoint. On each machine one rank brings it to the local disk, if it is not
there, and reads it once to see that it is whole; then all ranks map that file into memory, so a
machine holds it once however many GPUs it has.
"""

import contextlib
from collections.abc import Iterator

from trainer import distributed
from trainer.checkpoints.files import Opened, mapped, newest, opened
from transforms.core import storage
from transforms.core.errors import ConfigError
from transforms.core.storage.local import temporary_name


def check_folder(folder: str) -> None:
    """See that what rank 0 writes to a folder is there for all ranks.

    Raises:
        StorageError: It cannot be written or read.
        ConfigError: It is not; each machine has a folder of this name.
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
def newest_here(folder: str) -> Iterator[Opened | None]:
    """The newest whole checkpoint in a folder, the same on every rank; None if there is none.

    Raises:
        StorageError: It cannot be read.
        ConfigError: There are checkpoints, but none is whole.
    """
    rank, first = distributed.rank(), distributed.first_rank_here()
    with contextlib.ExitStack() as stack:

        def choose() -> Opened | None:
            return stack.enter_context(newest(folder)) if rank == 0 else None

        def bring(url: str) -> Opened | None:
            return here or (stack.enter_context(opened(url)) if rank == first else None)

        def take(url: str, path: str) -> Opened:
            return here or Opened(url, path, mapped(path, url))

        here = distributed.run_on_all_ranks(choose)
        url = distributed.gather_objects(here.url if here else None)[0]
        if url is not None:
            here = distributed.run_on_all_ranks(lambda: bring(url))
            path = distributed.gather_objects(here.path if here else "")[first]
            here = distributed.run_on_all_ranks(lambda: take(url, path))  # Then copies may go.
        yield here
