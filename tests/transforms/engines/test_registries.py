"""Rules that every registered engine must follow."""

import pickle
from typing import get_args

import pytest
from pydantic import ValidationError

from transforms.core.config import Config
from transforms.engines.image import registry as images
from transforms.engines.image.base import GeneratorConfig, ImageEngineConfig, ImageEngineSpec
from transforms.engines.model_refs import Model
from transforms.engines.text import registry as texts
from transforms.engines.text.base import SamplingConfig, TextEngineConfig, TextEngineSpec

MODEL = Model("owner/name", "0" * 40, f"hub:owner/name@{'0' * 40}")


class Job(Config):
    text: texts.AnyTextEngineConfig = texts.DEFAULT_ENGINE
    image: images.AnyImageEngineConfig = images.DEFAULT_ENGINE


@pytest.mark.parametrize("engines", [texts.ENGINES, images.ENGINES])
def test_engines_have_names_of_their_own(engines: tuple[type[Config], ...]) -> None:
    names = [get_args(engine.model_fields["name"].annotation) for engine in engines]
    assert all(len(name) == 1 for name in names)
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("engine", texts.ENGINES)
def test_a_text_engine_is_chosen_by_its_name(engine: type[TextEngineConfig]) -> None:
    name = engine.model_fields["name"].default
    assert type(Job.model_validate({"text": {"name": name}}).text) is engine
    config = engine.model_validate({})
    assert config.fingerprint()["engine"] == name
    spec = TextEngineSpec(MODEL, config, SamplingConfig())
    assert pickle.loads(pickle.dumps(spec)) == spec
    assert len(pickle.dumps(spec)) < 2000


@pytest.mark.parametrize("engine", images.ENGINES)
def test_an_image_engine_is_chosen_by_its_name(engine: type[ImageEngineConfig]) -> None:
    name = engine.model_fields["name"].default
    assert type(Job.model_validate({"image": {"name": name}}).image) is engine
    spec = ImageEngineSpec(MODEL, engine.model_validate({}), GeneratorConfig())
    assert pickle.loads(pickle.dumps(spec)) == spec
    assert len(pickle.dumps(spec)) < 2000


def test_an_engine_that_nobody_registered_is_refused() -> None:
    for section in ("text", "image"):
        with pytest.raises(ValidationError, match="nobody"):
            Job.model_validate({section: {"name": "nobody"}})
