"""TensorBoard shows each step once, also after a restart."""

import contextlib
from pathlib import Path

from trainer.monitor.trackers import TensorBoard


def test_tensorboard_shows_every_step_once(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    killed = TensorBoard(str(tmp_path), 0)
    for step in range(5):
        killed.write(step, {"loss": 1.0})
    killed.flush()
    with contextlib.closing(TensorBoard(str(tmp_path), 3)) as continued:
        for step in range(3, 6):
            continued.write(step, {"loss": 0.5, "knn": 20.0})
    told = EventAccumulator(str(tmp_path)).Reload()
    assert sorted(told.Tags()["scalars"]) == ["knn", "loss"]
    curve = [(point.step, point.value) for point in told.Scalars("loss")]
    assert curve == [(0, 1.0), (1, 1.0), (2, 1.0), (3, 0.5), (4, 0.5), (5, 0.5)]
