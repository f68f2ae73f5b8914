import json
from pathlib import Path

import pytest

from pipelines.captions import CaptionsConfig, stage
from pipelines.concepts import run
from tests.support.paths import PIPELINE_CONFIGS
from transforms.concepts.lists import load_concepts
from transforms.core.config import load_config
from transforms.core.errors import ConfigError

CONFIGS = PIPELINE_CONFIGS
DEMO = str(CONFIGS / "demo.yaml")
LIST = """
sources:
  - {source: animals, share: 3, backgrounds: [forest], concepts: [fox, owl]}
  - {source: pets, share: 1, concepts: [Fox, cat, {name: kennel, kind: place}]}
"""


def config(tmp_path: Path, text: str = LIST) -> CaptionsConfig:
    path = tmp_path / "list.yaml"
    path.write_text(text)
    return load_config(CaptionsConfig, DEMO, [f"run={tmp_path / 'run'}", f"concepts={path}"])


def files(tmp_path: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (tmp_path / "run" / "concepts").iterdir()}


def test_a_list_is_summarised_and_written_as_a_list(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(config(tmp_path), [])
    printed = capsys.readouterr().out
    assert "add up to 4 and were divided by that sum" in printed
    assert "left out: an earlier source has the same concept" in printed
    header, animals, pets = printed.splitlines()[:3]
    assert header.split()[:3] == ["source", "kind", "concepts"]
    assert animals.split() == ["animals", "object", "2", "0", "75.00%", "2", "fox,", "owl"]
    assert pets.split() == ["pets", "object,", "place", "2", "1", "25.00%", "0", "cat,", "kennel"]
    written = json.loads(files(tmp_path)["summary.json"])
    assert [source["num_concepts"] for source in written["sources"]] == [2, 2]
    assert written["left_out"] == [{"name": "Fox", "source": "pets", "kept_in": "animals"}]
    again = load_concepts(str(tmp_path / "run" / "concepts" / "concepts.parquet"))
    assert again == load_concepts(str(tmp_path / "list.yaml"))


def test_the_same_list_changes_nothing_and_another_is_refused(tmp_path: Path) -> None:
    run(config(tmp_path), [])
    before = files(tmp_path)
    run(config(tmp_path), [])
    assert files(tmp_path) == before
    with pytest.raises(ConfigError, match=r"other settings.*source pets") as error:
        run(config(tmp_path, LIST.replace("cat", "dog")), [])
    assert "source animals" not in str(error.value)
    assert files(tmp_path) == before


def test_the_paper_s_config_stands() -> None:
    # With an endpoint, the model is not looked up at the hub.
    path = str(CONFIGS / "syncaps-150m.yaml")
    overrides = ["engine.name=openai", "captions.use_backgrounds=list"]
    assert load_config(CaptionsConfig, path).model == "meta-llama/Llama-2-7b-hf"
    paper = load_config(CaptionsConfig, path, overrides)
    sampling = paper.captions.sampling
    assert (sampling.temperature, sampling.top_p, sampling.max_new_tokens) == (0.8, 0.9, 100)
    planned = stage(paper)
    assert planned.num_shards == 1.05 * 15_000
    assert planned.num_records == 157_500_000
    owed = planned.producer.record_ids(planned.num_shards - 1)
    assert (len(owed), owed[-1]) == (10_000, "157499999")
