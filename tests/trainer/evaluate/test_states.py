"""States of trainings over ranks: an error of one rank is known to all."""

from pathlib import Path

from tests.support.ranks import run_on_ranks
from trainer import distributed
from trainer.distributed import LostRankError
from trainer.evaluate import states
from transforms.core.errors import ConfigError, StorageError


def outcomes(root: str) -> list[str]:
    """Return what happens on this rank: to a state that can be written, and to others."""
    folder, found = Path(root), []
    states.save({"step": 3}, f"{root}/state.pt")
    both = states.load(f"{root}/state.pt", "test")
    found.append("nothing" if both is None else f"step {both['step']}")
    try:
        states.save({"step": 3}, str(folder / "state.pt" / "below a file.pt"))
    except (StorageError, LostRankError) as error:
        found.append(type(error).__name__)
    try:
        states.load(f"{root}/{'state' if distributed.rank() else 'none'}.pt", "test")
    except ConfigError as error:
        found.append(str(error).partition(":")[2].partition(" in ")[0])
    return found


def test_all_ranks_learn_of_a_state_that_one_cannot_use(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    first, second = run_on_ranks(outcomes, 2, tmp_path / "out", str(tmp_path))
    differ = " the ranks find different states"
    assert first[0] == second[0] == "step 3"
    assert first[1:] == ["StorageError", differ]
    assert second[1:] == ["LostRankError", differ]
