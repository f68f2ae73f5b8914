from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from pipelines.tiny_sd import __main__ as command
from pipelines.tiny_sd import autoencoder, drawings, judge, networks, score, text_encoder
from tests.support.tiny_sd import AUTOENCODER, CONCEPTS, DIFFUSION, TEXT, make_composer


@pytest.mark.slow
def test_all_steps_lead_from_drawings_to_a_scored_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    waves = [
        drawings.Concept(w, c, "", c) for w, c in zip(("first", "second"), CONCEPTS, strict=True)
    ]
    for owner, attribute, value in (
        (drawings, "fetch", lambda folder: None),
        (drawings, "load_concepts", lambda: waves),
        (command, "make_composer", lambda work: make_composer()),
        (autoencoder, "AutoencoderConfig", lambda: AUTOENCODER),
        (networks, "DiffusionConfig", lambda: DIFFUSION),
        (text_encoder, "TextConfig", lambda: TEXT),
        (judge, "NUM_STEPS", 2),
        (score, "load_free_captions", lambda names: (["a cat sits"], np.array([0]))),
    ):
        monkeypatch.setattr(owner, attribute, value)
    work, out = tmp_path / "work", tmp_path / "model"
    for step in command.STEPS:
        command.run_step(step, work, out, num_processes=2)
    assert "of 8" in yaml.safe_load((out / score.SCORES_FILE).read_text())["concept, `a CONCEPT`"]
    assert Image.open(out / score.SHEET_FILE).height == 64 + 14
    for checkpoint, config in (("autoencoder", AUTOENCODER), ("diffusion", DIFFUSION)):
        saved = torch.load(work / f"{checkpoint}.pt", weights_only=True)
        assert saved["step"] == config.num_steps
