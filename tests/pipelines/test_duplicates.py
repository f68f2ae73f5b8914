"""Captions that a run repeats: as many as wanted, and each with pictures of its own."""

from collections import defaultdict
from pathlib import Path

import pytest

from pipelines import captions, curate, images
from pipelines.__main__ import main
from pipelines.captions import CaptionsConfig
from pipelines.images import ImagesConfig
from tests.support.paths import PIPELINE_CONFIGS
from tests.support.random_sd import write_random_sd
from transforms.core import storage
from transforms.core.config import load_config
from transforms.core.errors import ConfigError, UnfinishedError
from transforms.core.shard_reader import CommittedShards
from transforms.core.stages import stage_folder
from transforms.core.tar_shards import read_image_sets
from transforms.images.caption_reader import CaptionRows

LIST = """
sources:
  - source: imagenet-1k
    concepts: [{name: fox, hypernym: canine}, {name: kettle, hypernym: vessel}]
  - source: places-365
    kind: place
    concepts: [harbour, quarry]
"""


def config(run: Path, num_captions: int, **changes: object) -> CaptionsConfig:
    (run.parent / "list.yaml").write_text(LIST)
    settings = {
        "run": str(run),
        "concepts": str(run.parent / "list.yaml"),
        "num_captions": num_captions,
        "captions_per_shard": 4,
        "captions": {"variant": "IN+h+Places", "oversampling": 1},
        "curation": {"duplicates": "keep"},
    }
    return CaptionsConfig.model_validate({**settings, **changes})


def test_ten_times_as_many_captions_as_there_are_with_pictures_of_their_own(
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    wanted = config(run, 40)
    captions.run(wanted, [])
    curate.run(wanted, [])
    rows = CaptionRows.open(str(run / "captions"))
    repeated = rows.read(0, rows.num_captions)
    assert len(repeated) == len({c.caption_id for c in repeated}) == 40
    assert len({c.text for c in repeated}) == 4
    painted = {
        "run": str(run),
        "model": str(write_random_sd(tmp_path / "model")),
        "images_per_caption": 1,
        "captions_per_shard": 20,
        "generator": {"num_steps": 1, "size": 32, "stored_size": 32},
        "engine": {"batch_size": 20},
    }
    images.run(ImagesConfig.model_validate(painted), [])
    pictures: defaultdict[str, list[bytes]] = defaultdict(list)
    for shard in CommittedShards.open_complete(stage_folder(str(run), "images")):
        for image_set in read_image_sets(shard.read()):
            pictures[image_set.caption.text] += image_set.images
            assert image_set.caption in repeated
    assert sum(map(len, pictures.values())) == 40
    for of_text in pictures.values():
        assert len(of_text) == len(set(of_text)) > 1
    assert main(["verify", str(run)]) == 0


def test_more_different_captions_than_there_are_is_said_before_anything_is_written(
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    said = r"'num_captions' has value 40: the concept list gives 4 different .*duplicates=keep"
    with pytest.raises(ConfigError, match=said):
        captions.run(config(run, 40, curation={}), [])
    assert not run.exists()


def test_the_advice_leads_to_all_different_captions_or_says_that_there_are_no_more(
    tmp_path: Path,
) -> None:
    """Four captions at random: the first four written are hardly ever all of them."""
    run, oversampling = tmp_path / "run", 1.0
    for _ in range(5):
        settings = {"variant": "IN+h+Places", "oversampling": oversampling}
        wanted = config(run, 4, captions=settings, curation={"near_duplicate_threshold": None})
        captions.run(wanted, [])
        try:
            curate.run(wanted, [])
            break
        except UnfinishedError as error:
            found = str(error).partition("captions.oversampling=")[2].split()
            assert float(found[0]) > oversampling, error
            oversampling = float(found[0])
    rows = CaptionRows.open(str(run / "captions"))
    assert len({c.text for c in rows.read(0, rows.num_captions)}) == 4


def test_a_file_is_read_again_if_its_captions_are_too_few(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (tmp_path / "given.txt").write_text("".join(f"A photo of house {i}\n" for i in range(5)))
    settings = {
        "variant": "file",
        "captions_file": str(tmp_path / "given.txt"),
        "oversampling": 1,
        "filters": {"min_mention": 0},
    }
    with pytest.raises(ConfigError, match=r"it holds 5 captions, but 12 are .*duplicates=keep"):
        captions.run(config(run, 12, captions=settings, curation={}), [])
    wanted = config(run, 12, captions=settings)
    captions.run(wanted, [])
    curate.run(wanted, [])
    rows = CaptionRows.open(str(run / "captions"))
    found = sorted((c.text, c.occurrence) for c in rows.read(0, 12))
    assert found == sorted((f"A photo of house {i % 5}", i // 5) for i in range(12))


@pytest.mark.parametrize(
    "path",
    [*PIPELINE_CONFIGS.glob("table2-*.yaml"), PIPELINE_CONFIGS / "syncaps-150m.yaml"],
    ids=lambda path: path.stem,
)
def test_configs_named_after_the_paper_have_none_of_our_filters(path: Path) -> None:
    of_paper = load_config(CaptionsConfig, str(path))
    assert of_paper.captions.filters.min_mention == 0
    assert of_paper.curation.keeps_all
    assert of_paper.curation.near_duplicate_threshold is None
    assert of_paper.num_captions == (150 if "150m" in path.stem else 10) * 1_000_000


def test_the_key_is_recorded_only_if_it_is_set(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for duplicates in ("drop", "keep"):
        wanted = config(run, 4, curation={"duplicates": duplicates})
        fields = curate.stage(wanted, "input").fingerprint.fields
        assert ("duplicates" in fields) == (duplicates == "keep")
    assert not storage.exists(str(run))
