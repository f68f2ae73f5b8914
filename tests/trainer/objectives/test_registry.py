"""The registry: adding an objective, keys of each objective, runs of earlier versions."""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.gradients import tiny_config
from tests.support.image_shards import write_image_captions, write_images
from tests.support.paths import ROOT
from tests.support.run_yaml import write_run_yaml
from tests.support.training_runs import command, losses, make_run, write_config
from trainer.config import TrainConfig
from trainer.objectives.registry import OBJECTIVES, objective_of
from trainer.training import nonfinite
from transforms.core.config import load_config
from transforms.core.config_keys import leaves
from transforms.core.errors import ConfigError
from transforms.core.exit_codes import NOT_FINITE, WRONG_CONFIG

TOY = '''"""Toy objective: predict the mean colour of a crop."""

from functools import partial
from typing import Literal

from pydantic import PositiveFloat
from torch import nn
from torch.nn import functional

from trainer.models.vit import EncoderNetwork, build_encoder, encode
from trainer.objectives.base import Objective, ObjectiveConfig


class ColourConfig(ObjectiveConfig):
    """Images are described by their mean colour."""

    kind: Literal["colour"] = "colour"
    """`colour`: the mean colour of a crop is predicted."""
    weight: PositiveFloat = 1.0
    """Weight of the loss."""


class ColourNetwork(EncoderNetwork):
    def __init__(self, model, seed):
        super().__init__()
        self.encoder = build_encoder(model, seed)
        self.colour = nn.Linear(model.width, 3)
        nn.init.zeros_(self.colour.weight)
        nn.init.zeros_(self.colour.bias)

    def forward(self, images):
        return self.colour(encode(self.encoder, images)[:, 0])


class Colour(Objective[ColourConfig]):
    settings_class = ColourConfig

    @classmethod
    def build_networks(cls, config):
        return ColourNetwork(config.model, config.seed), None

    @classmethod
    def warnings(cls, config):
        return ["Colours are easy."]

    def losses(self, batch, step):
        return [partial(self._terms, part) for part in self.micro_batches(batch)]

    def _terms(self, part):
        colours = self.run(self.student, part.global_images)
        error = functional.mse_loss(colours, part.global_images.mean(dim=(2, 3)))
        return {"loss": self.settings.weight * part.share * error, "error": part.share * error}
'''
REGISTRY = "trainer/objectives/registry.py"


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A copy of the packages with the toy objective added."""
    house = tmp_path / "house"
    for package in ("trainer", "transforms"):
        shutil.copytree(ROOT / package, house / package, ignore=shutil.ignore_patterns("*.pyc"))
    (house / "trainer" / "objectives" / "colour.py").write_text(TOY)
    text = (house / REGISTRY).read_text()
    text = text.replace("    CLIP,\n", "    CLIP,\n    Colour,\n")
    text = text.replace(
        "import CLIP\n", "import CLIP\nfrom trainer.objectives.colour import Colour\n"
    )
    (house / REGISTRY).write_text(text)
    return house


def test_a_new_objective_is_one_module_and_its_line_in_the_registry(
    house: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    write_images(run / "images")
    changes = {"objective": {"kind": "colour", "weight": 2.0}, "crops": {"num_local": 0}}
    config = write_config(run, **changes)
    overrides = ["accumulation=2", "steps=30", "optim.learning_rate=0.01"]
    arguments = [sys.executable, "-m", "trainer.train", config, *overrides]
    environment = {**os.environ, "PYTHONPATH": str(house)}
    done = subprocess.run(
        arguments, cwd=house, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Colours are easy." in done.stderr
    rows = [json.loads(line) for line in (run / "train" / "metrics.jsonl").open()]
    found = [row["loss"] for row in rows]
    assert found == pytest.approx([2 * row["error"] for row in rows], rel=1e-4)
    assert sum(found[-3:]) < 0.5 * sum(found[:3])
    stored = yaml.safe_load((run / "train" / "run.yaml").read_text())
    assert stored["config"]["objective"] == {"kind": "colour", "weight": 2.0}


def test_each_section_has_only_the_keys_that_its_objective_uses() -> None:
    keys = {
        objective.settings_class.model_fields["kind"].default: {
            key.partition(".")[0] for key, _ in leaves(objective.settings_class)
        }
        for objective in OBJECTIVES
    }
    assert keys["supervised"] == {"kind"}
    assert keys["augreg"] == {"kind", "num_ops", "magnitude", "mixup", "dropout"}
    assert keys["clip"] == {"kind", "text", "contrastive_chunk"}
    assert "text" not in keys["contrastive"]


@pytest.mark.parametrize("kind", ["supervised", "clip"])
def test_keys_that_earlier_versions_required_have_no_effect(kind: str) -> None:
    crops = {"num_local": 0}
    plain = tiny_config("unused", crops=crops, objective={"kind": kind})
    before = {"kind": kind, "teacher": False, "ibot_weight": 0.0}
    assert tiny_config("unused", crops=crops, objective=before) == plain
    assert objective_of(plain).settings_class is type(plain.objective)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["objective.kind=clip", "objective.teacher=true"], "'clip', which has no teacher"),
        (["objective.kind=clip", "objective.ibot_weight=1"], "unknown key 'objective.ibot_weight'"),
        (["objective.kind=supervised", "objective.text.width=8"], "unknown key 'objective.text"),
        (["objective.kind=colour"], "expected 'contrastive', 'supervised', 'augreg', 'clip'"),
    ],
)
def test_keys_of_other_objectives_are_refused(
    tmp_path: Path, overrides: list[str], sentence: str
) -> None:
    write_config(tmp_path, crops={"num_local": 0})
    with pytest.raises(ConfigError) as caught:
        load_config(TrainConfig, str(tmp_path / "train.yaml"), overrides)
    assert sentence in str(caught.value)


OLD_FIELDS: dict[str, dict[str, Any]] = {
    "contrastive": {"objective.text.width": 512, "objective.text.tokenizer": "bytes"},
    "supervised": {"objective.teacher": False, "objective.contrastive_head.hidden": 4096},
}
"""Some fields that earlier versions had in the fingerprint, by kind of objective."""


@pytest.mark.parametrize("kind", OLD_FIELDS)
def test_a_run_of_an_earlier_version_continues(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    run = make_run(tmp_path / "run")
    write_image_captions(run / "captions")
    overrides = [] if kind == "contrastive" else [f"objective.kind={kind}", "crops.num_local=0"]
    assert command(run, *overrides) == 0
    path = run / "train" / "run.yaml"
    stored = yaml.safe_load(path.read_text())
    stored["fields"] |= OLD_FIELDS[kind]
    write_run_yaml(stored, str(path))
    assert command(run, *overrides) == 0
    assert "Trained already: 4 steps" in capsys.readouterr().out
    stored["fields"]["objective.unknown"] = 1
    write_run_yaml(stored, str(path))
    assert command(run, *overrides) == WRONG_CONFIG
    assert "objective.unknown" in capsys.readouterr().err


@pytest.mark.parametrize("kind", OLD_FIELDS)
def test_a_note_of_an_earlier_version_still_stops_the_same_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    run = make_run(tmp_path / "run")
    write_image_captions(run / "captions")
    overrides = [] if kind == "contrastive" else [f"objective.kind={kind}", "crops.num_local=0"]
    with monkeypatch.context() as patch:
        patch.setattr(
            "trainer.objectives.base.Objective._augment",
            lambda self, pixels, draws: pixels.float() * float("nan"),
        )
        assert command(run, *overrides) == NOT_FINITE
    path = run / "train" / nonfinite.NOTE
    note = json.loads(path.read_text())
    note["settings"] |= OLD_FIELDS[kind]
    note["settings"]["objective"] = {"contrastive_chunk": None, "ibot_chunk": 2048}
    path.write_text(json.dumps(note))
    assert command(run, *overrides) == NOT_FINITE, "at once"
    assert not losses(run)
    assert command(run, *overrides, "optim.clip_norm=1") == 0


def test_no_module_asks_which_objective_a_config_has() -> None:
    asking = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sorted((ROOT / "trainer").rglob("*.py"))
        if "evaluate" not in path.parts  # Kinds are those of data sets there.
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Compare | ast.Match)
        for part in ast.walk(node)
        if isinstance(part, ast.Attribute) and part.attr == "kind"
    ]
    assert not asking
