import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.support.random_engines import SEEDS, TEXTS, load_from
from tests.support.random_sd import write_random_sd, write_random_sd3
from transforms.core.counters import Count
from transforms.core.errors import ConfigError
from transforms.engines.image.diffusers import DiffusersEngine


@pytest.mark.parametrize("scheduler", ["dpm++", "unipc", "euler", "euler-a", "model"])
def test_with_each_sampler_an_image_depends_on_nothing_else(
    load: Callable[..., DiffusersEngine], engine: DiffusersEngine, scheduler: str
) -> None:
    other = load(scheduler=scheduler)
    together = other.paint(TEXTS, SEEDS).pixels
    np.testing.assert_array_equal(other.paint(TEXTS[2:3], SEEDS[2:3]).pixels[0], together[2])
    same = np.array_equal(together, engine.paint(TEXTS, SEEDS).pixels)
    assert same == (scheduler == "model"), "the folder names DDIM"


@pytest.mark.parametrize("change", [{"vae_slicing": True}, {"channels_last": True}])
def test_how_it_is_computed_changes_no_more_than_rounding(
    load: Callable[..., DiffusersEngine], engine: DiffusersEngine, change: dict[str, Any]
) -> None:
    difference = load(**change).paint(TEXTS, SEEDS).pixels.astype(int)
    difference -= engine.paint(TEXTS, SEEDS).pixels
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("flags_above", [-2.0, 2.0])
def test_the_safety_checker_rejects_what_it_flags(tmp_path: Path, flags_above: float) -> None:
    folder = write_random_sd(tmp_path / "checked", flags_above=flags_above)
    expected = Count.IMAGE_FLAGGED if flags_above < 0 else None
    checked = load_from(folder, safety_checker=True).paint(TEXTS[:2], SEEDS[:2])
    assert checked.rejects == (expected, expected)
    assert load_from(folder).paint(TEXTS[:2], SEEDS[:2]).rejects == (None, None)


def test_a_safety_checker_that_is_not_there(load: Callable[..., DiffusersEngine]) -> None:
    with pytest.raises(ConfigError, match=r"generator\.safety_checker.*has no safety checker"):
        load(safety_checker=True)


def test_a_sampler_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"generator\.scheduler.*FlowMatch.*expected 'model'"):
        load_from(write_random_sd3(tmp_path / "sd3"), scheduler="dpm++")


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "sound"
    folder.mkdir()
    (folder / "model_index.json").write_text('{"_class_name": "StableAudioPipeline"}')
    with pytest.raises(ConfigError, match="cannot load as a text-to-image pipeline"):
        load_from(folder)


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
    ],
)
def test_pickled_weights_are_not_read(folder: Path, tmp_path: Path, part: str, name: str) -> None:
    """Unpickling can run any code; without our setting, diffusers falls back to these files."""
    hostile = tmp_path / "model"
    shutil.copytree(folder, hostile)
    safe = hostile / part / f"{name}.safetensors"
    pickled = "pytorch_model.bin" if part == "text_encoder" else f"{name}.bin"
    torch.save(load_file(safe), hostile / part / pickled)
    safe.unlink()
    with pytest.raises(OSError, match=rf"no file named {name}\.safetensors"):
        load_from(hostile)


@pytest.mark.xdist_group("models")
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_compiled_it_paints_the_same(
    load: Callable[..., DiffusersEngine],
    engine: DiffusersEngine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Code is generated for the decoder only: for all of the denoiser it takes a minute."""
    compiled_networks, compile_as_usual = [], torch.compile

    def compile_network(call: Any, **options: Any) -> Any:
        compiled_networks.append(type(call.__self__).__name__)
        if compiled_networks[-1] != "Decoder":
            options["backend"] = "aot_eager_decomp_partition"
        return compile_as_usual(call, **options)

    monkeypatch.setattr(torch, "compile", compile_network)
    compiled = load(compile=True, compile_cache=str(tmp_path / "cache"))
    difference = compiled.paint(TEXTS, SEEDS).pixels.astype(int)
    difference -= engine.paint(TEXTS, SEEDS).pixels
    assert np.abs(difference).max() <= 1
    assert compiled_networks == ["UNet2DConditionModel", "Decoder"]
    assert any((tmp_path / "cache").rglob("*.so")), "compiled kernels are kept"
