import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines import verify
from pipelines.backgrounds import run, stage
from pipelines.captions import CaptionsConfig, prompt_source
from pipelines.runner import plan
from tests.support.captions import make_captions, write_captions
from tests.support.openai_endpoint import Answer, Endpoint
from tests.support.paths import PIPELINE_CONFIGS
from transforms.core.config import load_config
from transforms.core.errors import ConfigError, MissingFileError, UnfinishedError
from transforms.core.parquet_shards import BACKGROUND_SHARDS

DEMO = str(PIPELINE_CONFIGS / "demo.yaml")
SMALL = ["places_per_concept=6", "min_places=3", "max_tries=3", "concepts_per_shard=2"]
NAMES = ["fox", "kettle", "café", "jack-o'-lantern", "nothing", "refused"]


def answer(body: dict[str, Any]) -> Answer:
    concept = body["prompt"].splitlines()[-1].removesuffix(" =>")
    if concept == "refused":
        return Answer(status=400)
    if concept == "nothing":
        return Answer("in nothing, , 12")
    places = [f"in a {place} {body['seed'] % 7}" for place in ("barn", "street", "beach")]
    return Answer(", ".join(places))


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    server = Endpoint(answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def config(tmp_path: Path, url: str = "http://nowhere/v1", *overrides: str) -> CaptionsConfig:
    concepts = tmp_path / "concepts.txt"
    if not concepts.exists():
        concepts.write_text("\n".join(NAMES))
    settings = [f"run={tmp_path / 'run'}", f"concepts={concepts}", "model=any"]
    settings += ["engine.name=openai", f"engine.base_url={url}"]
    settings += [*(f"backgrounds.{key}" for key in SMALL), *overrides]
    return load_config(CaptionsConfig, DEMO, settings)


def found(tmp_path: Path) -> dict[str, tuple[str, ...]]:
    shards = sorted((tmp_path / "run" / "backgrounds" / "shards").rglob("*.parquet"))
    return {
        row.concept: row.places for shard in shards for row in BACKGROUND_SHARDS.read(str(shard))
    }


def test_places_are_found_committed_and_used_by_captions(
    tmp_path: Path, endpoint: Endpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    given = config(tmp_path, endpoint.url, "captions.use_backgrounds=run")
    with pytest.raises(MissingFileError, match="run `python -m pipelines backgrounds`"):
        prompt_source(given)
    run(given, [])
    assert "4 concepts in 3 shards, 2 failures" in capsys.readouterr().err
    places = found(tmp_path)
    assert list(places) == NAMES[:4]
    assert all(3 <= len(set(p)) == len(p) <= 6 for p in places.values())
    prompts = prompt_source(given)
    drawn = {prompts.build(ordinal).background for ordinal in range(1000)} - {None}
    assert drawn == {place for listed in places.values() for place in listed}
    num_requests = len(endpoint.requests)
    run(given, [])
    assert len(endpoint.requests) == num_requests, "a complete stage sends no requests"
    write_captions(f"{given.run}/captions", [make_captions(3)])
    verify.run(verify.VerifyConfig(run=given.run), [])
    assert "none" in capsys.readouterr().out


def test_only_run_all_replaces_the_places_of_a_source_that_keeps_them(
    tmp_path: Path, endpoint: Endpoint
) -> None:
    (tmp_path / "concepts.yaml").write_text(
        "sources:\n"
        "- {source: curated, keep_backgrounds: true, backgrounds: [zoo], concepts: [fox]}\n"
        "- {source: general, backgrounds: [kitchen], concepts: [kettle]}\n"
    )
    settings = [endpoint.url, f"concepts={tmp_path / 'concepts.yaml'}"]
    run(config(tmp_path, *settings), [])
    places = found(tmp_path)
    assert set(places) == {"fox", "kettle"}
    expected = {
        "list": {"fox": {"zoo"}, "kettle": {"kitchen"}},
        "run": {"fox": {"zoo"}, "kettle": set(places["kettle"])},
        "run-all": {name: set(listed) for name, listed in places.items()},
    }
    for choice, wanted in expected.items():
        prompts = prompt_source(config(tmp_path, *settings, f"captions.use_backgrounds={choice}"))
        drawn: dict[str, set[str]] = {"fox": set(), "kettle": set()}
        for prompt in map(prompts.build, range(300)):
            drawn[prompt.concept.name] |= {prompt.background} if prompt.background else set()
        assert drawn == wanted, choice


def test_a_hundred_places_are_found_and_fewer_are_said(
    tmp_path: Path, endpoint: Endpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    rooms = ["barn", "attic", "cellar", "garden", "kitchen"]

    def from_a_stock(body: dict[str, Any]) -> Answer:
        concept = body["prompt"].splitlines()[-1].removesuffix(" =>")
        stock = 40 if concept == "kettle" else 1000
        numbers = [(body["seed"] + 7919 * i) % stock for i in range(10)]
        return Answer(", ".join(f"in the {rooms[n % 5]} {n}" for n in numbers))

    endpoint.answer = from_a_stock
    (tmp_path / "concepts.txt").write_text("fox\nkettle\n")
    more = ["backgrounds.places_per_concept=100", "backgrounds.max_tries=60"]
    given = config(tmp_path, endpoint.url, *more)
    run(given, [])
    assert [len(set(places)) for places in found(tmp_path).values()] == [100, 40]
    tries = Counter(body["prompt"].splitlines()[-1] for body in endpoint.requests)
    assert tries["kettle =>"] == 60 and 10 <= tries["fox =>"] < 60
    said = capsys.readouterr().err
    assert "1 of 2 concepts have fewer than 100 places, 'concepts/kettle' the fewest: 40. " in said


def test_a_stage_goes_on_where_it_stopped(tmp_path: Path, endpoint: Endpoint) -> None:
    given = config(tmp_path, endpoint.url)
    run(given, [])
    before = found(tmp_path)
    folder = tmp_path / "run" / "backgrounds"
    for path in [*folder.rglob("backgrounds-000000.*"), folder / "_SUCCESS"]:
        path.unlink()
    assert plan(stage(given)) == [0]
    endpoint.requests.clear()
    run(given, [])
    assert found(tmp_path) == before
    asked = {body["prompt"].splitlines()[-1].removesuffix(" =>") for body in endpoint.requests}
    assert asked == set(NAMES[:2])


def test_what_changes_places_changes_the_fingerprint(tmp_path: Path) -> None:
    digest = stage(config(tmp_path)).fingerprint.digest
    url = "http://elsewhere/v1"
    for harmless in (
        "num_captions=1600",
        "captions.sampling.temperature=0.1",
        "captions.filters.max_words=9",
    ):
        assert stage(config(tmp_path, url, harmless)).fingerprint.digest == digest, harmless
    for change in (
        "seed=1",
        "model=other",
        "backgrounds.max_words=3",
        "backgrounds.sampling.temperature=0.1",
        "backgrounds.max_tries=4",
    ):
        assert stage(config(tmp_path, url, change)).fingerprint.digest != digest, change
    (tmp_path / "concepts.txt").write_text("fox\n")
    assert stage(config(tmp_path)).fingerprint.digest != digest


def test_an_endpoint_that_is_gone_stops_the_stage_with_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UnfinishedError, match=r"the endpoint http://127\.0\.0\.1:9/v1 cannot be"):
        run(config(tmp_path, "http://127.0.0.1:9/v1", "engine.max_retries=0"), [])


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("backgrounds.min_places=7", "key 'backgrounds.min_places' has value 7"),
        ("backgrounds.examples=nowhere.yaml", "nowhere.yaml"),
        ("backgrounds.max_trys=3", "max_tries"),
    ],
)
def test_wrong_settings_are_said_in_a_sentence(
    tmp_path: Path, override: str, sentence: str
) -> None:
    with pytest.raises(ConfigError) as error:
        stage(config(tmp_path, "http://nowhere/v1", override))
    assert sentence in str(error.value)


def test_a_limit_of_one_engine_does_not_bind_another(tmp_path: Path) -> None:
    longer = "backgrounds.sampling.max_new_tokens=512"
    stage(config(tmp_path, "http://nowhere/v1", longer))
    local = [f"run={tmp_path}/run", f"concepts={tmp_path}/concepts.txt", longer]
    with pytest.raises(ConfigError, match=r"key 'engine\.max_model_len' has value 512"):
        stage(load_config(CaptionsConfig, DEMO, local))


def test_concepts_with_the_same_id_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "list.yaml"
    path.write_text(
        "sources:\n"
        "- {source: a/b, kind: object, concepts: [c]}\n"
        "- {source: a, kind: object, concepts: [b/c]}\n"
    )
    with pytest.raises(ConfigError, match="'c' of source 'a/b' and 'b/c' of source 'a'"):
        stage(config(tmp_path, "http://nowhere/v1", f"concepts={path}"))


def test_a_list_without_objects_needs_no_places(tmp_path: Path) -> None:
    path = tmp_path / "places.yaml"
    path.write_text("sources: [{source: a, kind: place, concepts: [harbour]}]")
    with pytest.raises(ConfigError, match="holds no objects"):
        stage(config(tmp_path, "http://nowhere/v1", f"concepts={path}"))
