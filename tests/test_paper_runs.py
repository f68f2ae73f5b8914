"""Each row of the table "Runs of the paper": planned at its size, and run at a small one."""

from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipelines import captions, curate, images
from pipelines.captions import CaptionsConfig
from pipelines.images import ImagesConfig
from tests.support.image_shards import write_image_captions, write_images
from tests.support.openai_endpoint import Answer, serving
from tests.support.paper_runs import Job, PaperRun, paper_runs, small_overrides, small_training
from trainer import train
from trainer.config import TrainConfig
from trainer.evaluate.protocols import config_class
from trainer.training.session import open_samples, rank_batches
from trainer.training.step import Training
from transforms.concepts.lists import read_list
from transforms.core.config import load_config
from transforms.core.index import write_index
from transforms.core.shards import CommitRecord
from transforms.core.stages import stage_folder

RUNS = paper_runs()
CAPTIONS = sorted({run.captions.name: run for run in RUNS}.items())
IMAGES = sorted({run.images for run in RUNS}, key=str)
TRAININGS = sorted({run.training for run in RUNS}, key=str)
MILLION = 1_000_000


@pytest.fixture(scope="module", autouse=True)
def _lists_are_read_once() -> Iterator[None]:
    """Keep concept lists between tests: reading one of the paper's takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.captions.read_list", cache(read_list))
        yield


def by_name(value: Any) -> str | None:
    if isinstance(value, Job):
        return " ".join([value.name, *value.overrides])
    return value.captions.name if isinstance(value, PaperRun) else None


def captions_config(job: Job, *overrides: str) -> CaptionsConfig:
    return load_config(CaptionsConfig, job.file, [*job.overrides, *overrides])


def test_every_run_of_the_tables_and_figures_has_its_row() -> None:
    parts = Counter(run.name.partition(":")[0] for run in RUNS)
    figures = {"Figures 6, 7": 10}
    assert {"Table 2": 5, "Table 3": 3, "Table 4": 5, "Table 5": 3, **figures}.items() <= (
        parts.items()
    )
    assert parts["Table 10"] >= 2
    assert len({run.name for run in RUNS}) == len(RUNS)
    sizes = [
        load_config(TrainConfig, run.training.file, run.training.overrides).data.num_captions
        for run in RUNS
        if run.name.startswith("Figures")
    ]
    assert sizes == 2 * [MILLION, 3 * MILLION, 10 * MILLION, 40 * MILLION, None]
    guidance = [
        load_config(ImagesConfig, run.images.file, run.images.overrides).generator.guidance
        for run in RUNS
    ]
    assert guidance[5:8] == [2.0, 3.0, 4.0]
    assert set(guidance[:5] + guidance[8:]) == {2.5}


def test_rows_with_other_captions_images_and_trainings_have_other_results() -> None:
    table_10_and_final = {"Table 10: SynCLR", "Final ViT-B/16"}
    table_2_and_4 = {"Table 2: our final config", "Table 4: SynCLR"}
    seen: dict[Any, set[str]] = {}
    for run in RUNS:
        seen.setdefault((run.captions, run.images, run.training), set()).add(run.name)
    assert [names for names in seen.values() if len(names) > 1] == [
        table_2_and_4,
        table_10_and_final,
    ]


@pytest.mark.parametrize(("name", "run"), CAPTIONS, ids=by_name)
def test_stages_are_planned_at_the_size_of_the_paper(
    name: str, run: PaperRun, tmp_path: Path
) -> None:
    wanted = 150 * MILLION if name == "syncaps-150m" else 10 * MILLION
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    changes = [f"run={tmp_path}", f"model={tmp_path}/model", "captions.use_backgrounds=list"]
    if run.captions.name == "table2-cc12m":
        write_file(tmp_path / "cc12m.parquet", int(1.05 * wanted))
        changes.append(f"captions.captions_file={tmp_path}/cc12m.parquet")
    config = captions_config(run.captions, *changes)
    assert config.curation.near_duplicate_threshold is None, "a filter of ours"
    assert config.captions.filters.min_mention == 0, "a filter of ours"
    raw = captions.stage(config)
    assert raw.num_records == pytest.approx(wanted * config.captions.oversampling, abs=9_999)
    assert raw.num_shards * config.captions_per_shard == raw.num_records
    curated = curate.stage(config, "checksum")
    assert curated.num_shards * config.captions_per_shard == curated.num_records == wanted
    claim_captions(tmp_path, curated.num_shards, config.captions_per_shard)
    for job in {other.images for other in RUNS if other.captions == run.captions}:
        painted = images.stage(
            load_config(
                ImagesConfig, job.file, [*job.overrides, f"run={tmp_path}", "model=builtin:tiny-sd"]
            )
        )
        assert painted.num_records == wanted
        assert painted.num_shards == wanted / 250
        assert painted.metadata["images_per_caption"] == "4"


def write_file(path: Path, number: int) -> None:
    """Write a file with this number of captions, all alike."""
    texts = pa.array(["a cat"]).dictionary_encode().take(pa.nulls(number, pa.int8()).fill_null(0))
    pq.write_table(pa.table({"caption": texts}), path)


def claim_captions(run: Path, num_shards: int, size: int) -> None:
    """Write the index of so many curated captions, without the captions."""
    folder = stage_folder(str(run), "captions")
    records = (
        CommitRecord(shard, folder.shard_path(shard), "0" * 64, 1, size, 0, "", 0.0, {}, {})
        for shard in range(num_shards)
    )
    write_index(folder, records, {"stage": "captions"})


def test_balance_of_table_5_is_exact() -> None:
    (job,) = {run.captions for run in RUNS if run.name.startswith("Table 5")}
    config = captions_config(job)
    plan = captions.prompt_source(config).plan()
    concepts = {(source, concept) for source, concept, _ in plan}
    assert len(concepts) == 1000
    assert config.curation.captions_per_concept == 10_000
    assert config.num_captions == 1000 * 10_000


def test_every_evaluation_can_be_read() -> None:
    for job in {run.evaluation for run in RUNS}:
        config: Any = load_config(config_class(), job.file, job.overrides)
        assert config.datasets == ("paper",)
        assert (config.logistic.num_strengths, config.logistic.max_iterations) == (45, 1000)
        small: Any = load_config(config_class(), job.file, small_overrides()["EVALUATION"])
        assert small.datasets == ("drawings",), "it is in the repository"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with 12 captions and the 4 images of each."""
    run = tmp_path_factory.mktemp("tiny")
    write_images(run / "images", images_per_caption=4)
    write_image_captions(run / "captions")
    return run


@pytest.mark.parametrize("job", TRAININGS, ids=by_name)
def test_three_steps_of_each_training_at_a_small_size(job: Job, tiny: Path) -> None:
    whole = load_config(TrainConfig, job.file, job.overrides)
    changes = [f"run={tiny}"]
    if whole.data.num_captions is not None:
        changes.append("data.num_captions=8")
    config = small_training(job.file, *changes)
    training = Training(config, torch.device("cpu"))
    before = {name: value.clone() for name, value in training.network.state_dict().items()}
    for batch in rank_batches(config, open_samples(config), range(3)):
        training.update(batch)
        values = training.values()
    assert training.step == 3
    assert (values["loss"] > 0) and torch.isfinite(torch.tensor(list(values.values()))).all()
    assert ("local" in values) == (config.crops.num_local > 0)
    assert ("ibot" in values) == (getattr(config.objective, "ibot_weight", 0.0) > 0)
    after = training.network.state_dict()
    name = "encoder.patch_embed.proj.weight"
    assert not torch.equal(before[name], after[name])


def write_about_it(body: dict[str, Any]) -> Answer:
    """Answer a prompt with a caption of what its last line asks for."""
    asked = str(body["prompt"]).rpartition("\n")[2].removesuffix(" =>")
    return Answer(f"A picture of {asked}, taken on day number {body['seed'] % 1000}")


@pytest.mark.slow
@pytest.mark.xdist_group("models")
@pytest.mark.parametrize(("name", "run"), CAPTIONS, ids=by_name)
def test_a_small_version_from_captions_to_three_steps(
    name: str, run: PaperRun, tmp_path: Path
) -> None:
    file = tmp_path / "given.txt"
    file.write_text("".join(f"A picture of house number {n} in town\n" for n in range(40)))
    where = f"run={tmp_path}/run"
    small = small_overrides()
    captions_config(run.captions, where, *small["LLM"], *small["CAPTIONS"])
    with serving(write_about_it) as endpoint:
        engine = ["engine.name=openai", f"engine.base_url={endpoint.url}"]
        changes = [where, *small["CAPTIONS"], *engine, f"captions.captions_file={file}"]
        if name == "table5":
            changes.append("curation.captions_per_concept=1")
        config = captions_config(run.captions, *changes)
        captions.run(config, [])
    curate.run(config, [])
    images.run(load_config(ImagesConfig, run.images.file, [where, *small["IMAGES"]]), [])
    config_file = str(tmp_path / "train.yaml")
    trained = small_training(run.training.file, where)
    Path(config_file).write_text(trained.model_dump_json())
    assert train.main([config_file]) == 0
