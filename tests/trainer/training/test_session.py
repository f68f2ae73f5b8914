"""The ranks of a training have the same settings, or none of them starts."""

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.support.gradients import tiny_config
from tests.support.image_shards import TINY_TRAINING
from tests.support.machines import machines, wait_for_rank, wait_until_idle
from tests.support.processes import needs_proc
from tests.support.training_runs import make_run
from trainer import distributed
from trainer.config import TrainConfig
from trainer.training.errors import RankConfigError
from trainer.training.session import check_same_settings
from transforms.core.config import parse_config
from transforms.core.errors import ConfigError
from transforms.core.exit_codes import UNFINISHED, WRONG_CONFIG

RANKS_HERE = 2


def check(configs: list[TrainConfig], monkeypatch: pytest.MonkeyPatch) -> list[ConfigError | None]:
    """Return the error of each rank; a rank is a thread, and a machine has two of them."""
    number, barrier = threading.local(), threading.Barrier(len(configs), timeout=60)
    values: list[Any] = [None] * len(configs)

    def gather(value: Any) -> list[Any]:
        values[number.rank] = value
        barrier.wait()
        gathered = list(values)
        barrier.wait()
        return gathered

    def error_of(rank: int) -> ConfigError | None:
        number.rank = rank
        try:
            check_same_settings(configs[rank])
        except ConfigError as error:
            return error
        return None

    monkeypatch.setattr(distributed, "gather_objects", gather)
    monkeypatch.setattr(distributed, "rank", lambda: number.rank)
    first = {rank: rank - rank % RANKS_HERE for rank in range(len(configs))}
    monkeypatch.setattr(distributed, "first_rank_here", lambda: first[number.rank])
    with ThreadPoolExecutor(len(configs)) as threads:
        return list(threads.map(error_of, range(len(configs))))


def test_equal_settings_are_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check([tiny_config("run")] * 3, monkeypatch) == [None] * 3


def test_every_rank_names_all_settings_that_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, other = tiny_config("run"), tiny_config("run", log_every=7, optim={"clip_norm": 1.0})
    errors = check([whole, whole, other, whole], monkeypatch)
    assert {str(error) for error in errors} == {
        "key 'log_every' is 1 on rank 0 and 7 on rank 2; key 'optim.clip_norm' is null on rank 0 "
        "and 1.0 on rank 2: expected the same command on every machine"
    }
    prints = [isinstance(error, RankConfigError) for error in errors]
    assert prints == [True, False, True, False], "once on each machine"


def test_keys_that_one_rank_alone_has_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = {"crops": {"num_local": 0}, "objective": {"teacher": False, "ibot_weight": 0.0}}
    clip = {"crops": {"num_local": 0}, "objective": {"kind": "clip"}}
    settings = [{**TINY_TRAINING, "run": "run", **section} for section in (plain, clip)]
    errors = check([TrainConfig.model_validate(one) for one in settings], monkeypatch)
    assert 'key \'objective.kind\' is "contrastive" on rank 0 and "clip" on rank' in str(errors[0])
    assert "key 'objective.teacher' is false on rank 0 and nothing on rank 1" in str(errors[0])


def test_values_from_the_environment_are_not_told_to_other_ranks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    configs = []
    for secret in ("the first secret", "the second secret"):
        monkeypatch.setenv("PROJECT", secret)
        text = "run: run\nmonitor: {wandb_project: '${oc.env:PROJECT}'}"
        configs.append(parse_config(TrainConfig, text, "train.yaml"))
    said = str(check(configs, monkeypatch)[1])
    assert "secret" not in said
    assert said.startswith("key 'monitor.wandb_project' is \"${oc.env:PROJECT}\" on rank 0 and ")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "second", "sentence"),
    [
        ("log_every=1", "log_every=3", "key 'log_every' is 1 on rank 0 and 3 on rank 1"),
        ("accumulation=1", "accumulation=2", "key 'accumulation' is 1 on rank 0 and 2 on rank 1"),
    ],
)
def test_machines_with_other_settings_end_at_once(
    tmp_path: Path, first: str, second: str, sentence: str
) -> None:
    run = make_run(tmp_path / "run")
    with machines(run, [first], [second]) as launchers:
        for launcher in launchers:
            errors = launcher.communicate(timeout=60)[1]
            assert launcher.returncode == WRONG_CONFIG, errors
            assert errors.count(f"{sentence}: expected the same command on every machine") == 1
    assert not (run / "train").exists()


@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_rank_that_waits_for_the_others_at_the_start_answers_signals(
    tmp_path: Path, number: signal.Signals
) -> None:
    with machines(make_run(tmp_path / "run"), [], []) as (first, second):
        os.kill(wait_for_rank(second), signal.SIGSTOP)
        wait_until_idle(wait_for_rank(first))
        first.send_signal(number)
        errors = first.communicate(timeout=20)[1]
        assert first.returncode == UNFINISHED
        assert f"exit code is 1 ({number.name}; this start saved no checkpoint)" in errors
