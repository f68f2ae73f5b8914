"""Trainings that an earlier version began: their settings mean what they meant then."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from tests.support.gradients import tiny_config
from trainer.config import TrainConfig
from trainer.models.heads import ContrastiveHeadConfig, build_projector
from trainer.training.settings_history import fixed
from transforms.core import storage
from transforms.core.config import fields_of_other_choices, stored_config
from transforms.core.config_keys import flatten, nest
from transforms.core.fingerprint import Fingerprint, FingerprintMismatchError, claim

NEW = ("photometric.downsampled", "objective.contrastive_head.statistics")
HEAD = {"hidden": 16, "out": 8}


def without_new_keys(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in NEW}


def continue_training(folder: Path, begun: TrainConfig, config: TrainConfig) -> None:
    """Claim a folder with the run.yaml that an earlier version wrote for `begun`."""
    url = str(folder / "run.yaml")
    fields = without_new_keys(fixed(begun))
    written = {"config": {}, "fields": fields, "fingerprint": Fingerprint(fields).digest}
    storage.replace_bytes(yaml.safe_dump(written).encode(), url)
    claim(
        url,
        Fingerprint(fixed(config)),
        config.written(),
        retired=fields_of_other_choices(config),
        of_this_version=config.of_this_version,
    )


def test_a_training_continues_with_what_it_did_and_not_otherwise(tmp_path: Path) -> None:
    begun = tiny_config("unused")
    sentence = (
        r'objective\.contrastive_head\.statistics: "apart" there, "together" here; '
        r'photometric\.downsampled: "crop" there, "image" here'
    )
    with pytest.raises(FingerprintMismatchError, match=sentence):
        continue_training(tmp_path, begun, begun)
    head = {"contrastive_head": {"statistics": "apart", **HEAD}}
    same = tiny_config("unused", photometric={"downsampled": "crop"}, objective=head)
    continue_training(tmp_path, begun, same)


@pytest.mark.parametrize(
    "changes",
    [
        {"crops": {"num_local": 0}},
        {"crops": {"num_local": 0}, "objective": {"kind": "supervised"}},
    ],
    ids=["contrastive", "supervised"],
)
def test_a_training_that_the_keys_do_not_concern_continues(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    config = tiny_config("unused", **changes, photometric={"downsample": 0})
    continue_training(tmp_path, config, config)


def test_the_layer_norm_of_a_training_has_another_name(tmp_path: Path) -> None:
    begun, same = (
        tiny_config(
            "unused",
            photometric={"downsample": 0},
            objective={"contrastive_head": {"norm": norm, **HEAD}},
        )
        for norm in ("ln", "ln_relu")
    )
    with pytest.raises(FingerprintMismatchError, match=r'norm: "ln_relu" there, "ln" here'):
        continue_training(tmp_path, begun, begun)
    continue_training(tmp_path, begun, same)


@pytest.mark.parametrize("norm", ["bn", "ln"])
def test_a_checkpoint_describes_the_training_as_it_was(norm: str) -> None:
    config = tiny_config("unused", objective={"contrastive_head": {"norm": norm, **HEAD}})
    values = without_new_keys(dict(flatten(config.written())))
    read: Any = stored_config(TrainConfig, nest(values), "step-1.ckpt")
    head = read.objective.contrastive_head
    expected = {"bn": ("bn", "apart"), "ln": ("ln_relu", "together")}[norm]
    assert (head.norm, head.statistics) == expected
    assert read.photometric.downsampled == "crop"
    assert stored_config(TrainConfig, config.written(), "step-1.ckpt") == config


def test_weights_of_an_earlier_layer_norm_fit() -> None:
    """Layers of that head: linear without bias, layer norm, ReLU; the last norm has no weights."""
    earlier = nn.Sequential(
        nn.Linear(6, 16, bias=False),
        nn.LayerNorm(16),
        nn.ReLU(),
        nn.Linear(16, 16, bias=False),
        nn.LayerNorm(16),
        nn.ReLU(),
        nn.Linear(16, 8, bias=False),
        nn.LayerNorm(8, elementwise_affine=False),
    )
    today = build_projector(6, ContrastiveHeadConfig(norm="ln_relu", hidden=16, out=8))
    today.load_state_dict(earlier.state_dict())
    rows = torch.randn(4, 6)
    torch.testing.assert_close(today(rows), earlier(rows))
