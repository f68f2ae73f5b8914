import dataclasses
import html.parser
import json
from pathlib import Path

import pytest

from pipelines.report.command import ReportConfig, run
from pipelines.report.data import gather
from pipelines.runner import finish, run_stage
from tests.support.block_engine import block_spec, paint_plan
from tests.support.captions import caption, captions_of, make_captions, write_captions
from tests.support.counting_stage import stage
from transforms.core import storage
from transforms.core.commit import ShardBuild
from transforms.core.counters import Count, Tally
from transforms.core.errors import DamagedFileError, UnfinishedError
from transforms.core.index import write_index
from transforms.core.records import Caption, Failure
from transforms.core.shards import StageFolder
from transforms.core.stages import STAGES, stage_folder
from transforms.images.caption_reader import CaptionRows
from transforms.images.producer import ImagesProducer

AWKWARD = "a <b>cat</b> & \"dog\" </style><script>alert('x')</script>"


def paint(url: str, captions: list[Caption]) -> None:
    """Write image shards of three captions each, without a model."""
    write_captions(f"{url}/captions", [captions])
    rows = CaptionRows.open(f"{url}/captions")
    made = ImagesProducer(rows, block_spec(), paint_plan(captions_per_shard=3, max_repaints=1))
    made.setup()
    folder = StageFolder(f"{url}/images", STAGES["images"])
    storage.replace_bytes(b"config: {images_per_caption: 4}", folder.run_yaml_url)
    for shard in range(-(-len(captions) // 3)):
        tally = Tally()
        with ShardBuild(folder, shard) as build:
            build.write(made.produce(shard, tally))
            build.commit(made.record_ids(shard), "fingerprint", tally)


def train(url: str, steps: int = 5) -> None:
    lines = [
        json.dumps({"step": step, "loss": 5.0 / (step + 1), "local": 0.0, "learning_rate": 0.1})
        for step in range(steps)
    ]
    text = "\n".join([*lines, '{"step": 5, "lo'])
    storage.replace_bytes(text.encode(), f"{url}/train/metrics.jsonl")


def evaluate(url: str) -> None:
    row = {"dataset": "drawings", "protocol": "knn", "metric": "top-1", "chance": 10.0}
    rows = [
        {**row, "encoder": "untrained", "value": 21.25, "error": 2.0, "spread": 1.5},
        {**row, "encoder": "trained", "value": 43.75, "error": 2.5, "spread": None},
    ]
    storage.replace_bytes(json.dumps(rows).encode(), f"{url}/scores/scores.json")


@pytest.fixture
def whole_run(tmp_path: Path) -> str:
    url = str(tmp_path / "my-run")
    texts = [AWKWARD, "blank 9"]
    paint(url, [*captions_of(texts), *make_captions(6, first=2)])
    train(url)
    evaluate(url)
    return url


class Page(html.parser.HTMLParser):
    """Parser that collects the elements and texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "line", "polyline"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(url: str) -> Page:
    return Page(storage.read_bytes(f"{url}/report.html").decode())


def test_the_page_stands_alone_and_escapes_what_captions_say(whole_run: str) -> None:
    run(ReportConfig(run=whole_run), [])
    page = page_of(whole_run)
    assert not page.open, "every element is closed"
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe")
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert AWKWARD in page.text


def test_every_text_of_a_run_is_escaped(whole_run: str) -> None:
    """Concepts, settings, scores and names of logged values can hold any text, as captions can."""
    share = {"name": AWKWARD, "source": AWKWARD, "captions": 8, "share": 1.0, "planned": 1.0}
    curation = {
        "num_raw": 8,
        "num_exact_duplicates": 0,
        "num_near_duplicates": 0,
        "num_left_over": 0,
        "near_examples": [{"dropped": AWKWARD, "resembled": AWKWARD, "similarity": 1.0}],
        "exact_examples": [{"text": AWKWARD, "times": 2}],
        "balance": {"source": [share], "template": [share], "concept": [share]},
    }
    storage.replace_bytes(json.dumps(curation).encode(), f"{whole_run}/captions/curation.json")
    logged = [json.dumps({"step": step, AWKWARD: step}) for step in range(2)]
    storage.replace_bytes(("\n".join(logged) + "\n").encode(), f"{whole_run}/train/metrics.jsonl")
    score = {"dataset": AWKWARD, "protocol": AWKWARD, "metric": AWKWARD, "encoder": AWKWARD}
    scores = [{**score, "value": 1.0, "error": 1.0, "spread": None, "chance": 1.0}]
    storage.replace_bytes(json.dumps(scores).encode(), f"{whole_run}/scores/scores.json")
    settings = json.dumps({"config": {"images_per_caption": 4, "model": AWKWARD}})
    storage.replace_bytes(settings.encode(), f"{whole_run}/images/run.yaml")
    run(ReportConfig(run=whole_run), [])
    page = page_of(whole_run)
    assert not page.open, "every element is closed"
    assert not [tag for tag, _ in page.tags if tag == "script"]
    assert [tag for tag, _ in page.tags].count("b") == 1, "the name of the run"
    # Captions: 2 shares, a concept with its source, 3 duplicates, 1 at random, 1 with its images.
    # Then the title of the curve, 3 cells and the encoder of the score, and the settings.
    assert page.text.count("alert('x')") >= (2 + 2 + 3 + 1 + 1) + 1 + 4 + 1
    described = [attributes.get("aria-label") or "" for _, attributes in page.tags]
    assert any(text.startswith(AWKWARD) for text in described)


def test_every_number_of_the_run_is_on_the_page(
    whole_run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run(ReportConfig(run=whole_run), [])
    page = page_of(whole_run)
    printed = capsys.readouterr().out
    for text in (page.text, printed):
        assert "7 image sets" in text
        assert "43.8 ± 2.5" in text
        assert "21.2 ± 1.5" in text
        assert "has not run yet" in text, "captions-raw is missing"
    assert "8 captions, 28 images, 5 training steps" in page.text
    assert printed.rstrip().endswith(f"{whole_run}/report.html")
    summary = gather(whole_run, 0, 0).stages["images"]
    assert summary is not None
    assert not summary.complete
    assert summary.failures == {"image_blank": 1}
    assert summary.counts == {"image_blank": 8, "repainted": 4}


def test_retries_are_part_of_a_stage(tmp_path: Path) -> None:
    """Two shards have one failure each; a retry makes one of the two records."""
    run, folder = str(tmp_path), stage_folder(str(tmp_path), "captions-raw")
    counting = stage(folder.url, 2)
    run_stage(counting, [])
    first = gather(run, 0, 0).stages["captions-raw"]
    assert first is not None
    assert first.failures == first.counts == {"drop_empty": 2}
    with ShardBuild(folder.retry(1), 0) as build:
        lost = Failure("11", str(Count.IMAGE_BLANK), "")
        build.write([caption(5), lost])
        tally = Tally()
        tally.count(Count.IMAGE_BLANK, 3)
        record = build.commit(["5", "11"], "fingerprint", tally)
    assert gather(run, 0, 0).stages["captions-raw"] == dataclasses.replace(
        first, num_bytes=sum(storage.list_files(folder.url).values())
    ), "an unfinished retry counts for nothing"
    write_index(folder.retry(1), [record], {})
    finish(counting)
    both = gather(run, 0, 0).stages["captions-raw"]
    assert both is not None
    assert (both.num_shards, both.num_samples, both.num_failures) == (3, 11, 1)
    assert both.failures == {"image_blank": 1}
    assert both.counts == {"drop_empty": 2, "image_blank": 3}
    assert both.shard_seconds == first.shard_seconds
    assert not both.estimated


def test_a_stage_that_is_to_grow_is_not_complete(tmp_path: Path) -> None:
    run = str(tmp_path)
    run_stage(stage(f"{run}/captions-raw", 2), [])
    with pytest.raises(UnfinishedError):
        run_stage(stage(f"{run}/captions-raw", 3, raise_in=2), [])
    summary = gather(run, 0, 0).stages["captions-raw"]
    assert summary is not None
    assert not summary.complete
    assert (summary.num_shards, summary.planned_shards, summary.num_samples) == (2, 3, 10)


def test_the_contact_sheet_pairs_captions_with_their_images(whole_run: str) -> None:
    for wanted in (0, 1, 4, 100):
        examples = gather(whole_run, wanted, 0).examples
        assert len(examples) == min(wanted, 7)
        assert len({example.text for example in examples}) == len(examples)
        assert all(len(example.images) == 4 for example in examples)
    run(ReportConfig(run=whole_run, num_examples=5), [])
    assert sum(tag == "img" for tag, _ in page_of(whole_run).tags) == 20


def test_a_loss_term_that_is_off_has_no_chart(whole_run: str) -> None:
    run(ReportConfig(run=whole_run), [])
    charts = [
        attributes["aria-label"] or ""
        for tag, attributes in page_of(whole_run).tags
        if tag == "svg"
    ]
    names = [chart.partition(":")[0] for chart in charts]
    assert names == ["captions by number of words", "loss", "learning_rate"]
    assert "from 5 at step 0 to 1 at step 4" in charts[1]


def test_the_same_run_gives_the_same_page(whole_run: str) -> None:
    pages = set()
    for _ in range(2):
        run(ReportConfig(run=whole_run), [])
        pages.add(storage.read_bytes(f"{whole_run}/report.html"))
    assert len(pages) == 1


@pytest.mark.parametrize("have", [train, evaluate])
def test_a_run_with_one_stage_has_a_report(tmp_path: Path, have: object) -> None:
    have(str(tmp_path))  # type: ignore[operator]
    run(ReportConfig(run=str(tmp_path)), [])
    assert "The images stage has not run yet" in page_of(str(tmp_path)).text


def test_a_run_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UnfinishedError, match="nothing to report"):
        run(ReportConfig(run=str(tmp_path / "nowhere")), [])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name",
    [
        "scores/scores.json",
        "train/metrics.jsonl",
        "images/commits/000/images-000001.json",
        "images/run.yaml",
        "images/shards/000/images-000001.tar",
        "captions/shards/000/captions-000000.parquet",
        "captions/curation.json",
    ],
)
def test_a_damaged_file_is_named(whole_run: str, name: str) -> None:
    storage.replace_bytes(b"[{]\n", f"{whole_run}/{name}")
    with pytest.raises(DamagedFileError, match=rf"{name} is damaged"):
        gather(whole_run, 8, 8)


def test_images_are_measured(whole_run: str) -> None:
    facts = gather(whole_run, 0, 0).images
    assert facts is not None
    assert facts.num_measured == 28
    for spread in (facts.brightness, facts.contrast, facts.num_bytes):
        assert 0 < spread.low <= spread.median <= spread.high


def test_a_large_stage_is_estimated_from_some_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = str(tmp_path)
    write_captions(f"{url}/captions-raw", [make_captions(5, first=5 * i) for i in range(40)])
    monkeypatch.setattr("pipelines.report.stages.MAX_RECORDS", 4)
    stage = gather(url, 0, 0).stages["captions-raw"]
    assert stage is not None
    assert (stage.num_records_read, stage.num_shards, stage.num_samples) == (4, 40, 200)
    run(ReportConfig(run=url), [])
    assert "estimates from some shards (captions, as written: 4 of 40)" in page_of(url).text
    Path(url, "captions-raw", "_SUCCESS").unlink()
    unfinished = gather(url, 0, 0).stages["captions-raw"]
    assert unfinished is not None
    assert unfinished.num_samples == 200, "scaled up, while there is no index"
