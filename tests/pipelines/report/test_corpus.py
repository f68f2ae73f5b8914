import json
from pathlib import Path

import pytest
import yaml

from pipelines.captions import CaptionsConfig
from pipelines.report.command import ReportConfig, run
from pipelines.report.corpus import image_facts
from tests.support.captions import caption, make_captions
from tests.support.image_shards import picture
from transforms.core import storage
from transforms.core.commit import ShardBuild
from transforms.core.counters import Count, Tally
from transforms.core.errors import StorageError
from transforms.core.records import Failure, ImageSet
from transforms.core.stages import stage_folder


def table_of(page: str, title: str) -> str:
    """Return the first table below a heading."""
    return page.partition(f">{title}<")[2].partition("</table>")[0]


@pytest.fixture
def captions_run(tmp_path: Path) -> str:
    """Write two shards of raw captions with a plan, without curation; return the run."""
    url = str(tmp_path / "run")
    concepts = tmp_path / "concepts.yaml"
    concepts.write_text("sources: [{source: pets, concepts: [cat, dog]}]")
    config = CaptionsConfig(
        run=url, concepts=str(concepts), num_captions=20, captions_per_shard=10, model="none"
    )
    folder = stage_folder(url, "captions-raw")
    for shard in range(2):
        tally = Tally()
        tally.count(Count.TOKENS, 400)
        tally.count(Count.DROP_EMPTY, 3)
        tally.count(Count.RETRIES, 2)
        made = make_captions(9, first=10 * shard)
        lost = Failure(str(10 * shard + 9), str(Count.DROP_EMPTY), "")
        with ShardBuild(folder, shard) as build:
            build.write([*made, lost])
            build.commit([*(str(c.ordinal) for c in made), lost.record_id], "print", tally)
    storage.replace_bytes(
        yaml.safe_dump({"config": config.model_dump(mode="json")}).encode(), folder.run_yaml_url
    )
    return url


def test_captions_that_are_not_curated_yet(captions_run: str) -> None:
    run(ReportConfig(run=captions_run), [])
    report = json.loads(storage.read_bytes(f"{captions_run}/report.json"))
    captions = report["captions"]
    assert captions["stage"] == "captions-raw"
    assert captions["lengths"][8] == captions["num_read"] == 18, "a cat that sits on chair number 1"
    assert len({row["text"] for row in captions["examples"]}) == 18
    assert not captions["balance_is_complete"]
    cats, dogs = captions["balance"]["concept"]
    assert (cats["share"], dogs["share"]) == (1, 0)
    assert cats["planned"] == pytest.approx(0.5) == dogs["planned"]
    page = storage.read_bytes(f"{captions_run}/report.html").decode()
    # Of 18 captions, 2 dead letters and 4 further tries.
    assert "<td>empty</td><td>6</td><td>25.0%</td>" in table_of(
        page, "Completions that were dropped and asked for again"
    )
    assert "2 concepts, 1 of them without a caption" in page


def test_a_plan_that_is_gone_is_no_error(captions_run: str) -> None:
    Path(captions_run).with_name("concepts.yaml").unlink()
    run(ReportConfig(run=captions_run), [])
    report = json.loads(storage.read_bytes(f"{captions_run}/report.json"))
    (source,) = report["captions"]["balance"]["source"]
    assert (source["share"], source["planned"]) == (1, None)


def test_a_plan_whose_storage_fails_is_no_error(
    captions_run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(config: CaptionsConfig) -> None:
        raise StorageError(None, "cannot read gs://lists/concepts.yaml")

    monkeypatch.setattr("pipelines.captions.prompt_source", fails)
    run(ReportConfig(run=captions_run), [])
    report = json.loads(storage.read_bytes(f"{captions_run}/report.json"))
    assert report["captions"]["balance"]["source"][0]["planned"] is None


def test_curation_is_on_the_page(captions_run: str) -> None:
    near = {"dropped": "an old cat", "resembled": "an old, old cat", "similarity": 0.875}
    share = [
        {
            "name": f"concept {i}",
            "source": "pets",
            "captions": 30 - i,
            "share": (30 - i) / 450,
            "planned": 0.04,
        }
        for i in range(25)
    ]
    curation = {
        "num_raw": 1000,
        "num_exact_duplicates": 40,
        "num_near_duplicates": 10,
        "num_left_over": 150,
        "near_examples": [near],
        "exact_examples": [{"text": "a cat again", "times": 7}],
        "balance": {"source": share[:1], "template": share[:2], "concept": share},
    }
    storage.replace_bytes(json.dumps(curation).encode(), f"{captions_run}/captions/curation.json")
    run(ReportConfig(run=captions_run), [])
    page = storage.read_bytes(f"{captions_run}/report.html").decode()
    assert "<td>equal to another one</td><td>40</td><td>4.0%</td>" in page
    assert "<td>an old cat</td><td>an old, old cat</td><td>0.88</td>" in page
    assert "<td>a cat again</td><td>7</td>" in page
    assert table_of(page, "Most captions").index("concept 0") > 0
    least = table_of(page, "Fewest captions")
    assert least.index("concept 24") < least.index("concept 23"), "the fewest first"
    assert "concept 9<" not in least


def test_the_images_of_an_example_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    images = tuple(picture(number) for number in range(12))
    painted = ImageSet(caption(), images, seeds=tuple(range(12)), settings={})
    with ShardBuild(stage_folder(str(tmp_path), "images"), 0) as build:
        build.write([painted])
        record = build.commit([painted.caption.caption_id], "print", Tally())
    (example,), facts = image_facts(str(tmp_path), [record], 1)
    assert (example.text, example.concept) == (painted.caption.text, painted.caption.concept)
    assert example.images == images
    assert facts is not None and facts.num_measured == 12
