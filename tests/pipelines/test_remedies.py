"""Each remedy that a message names works.

`TABLE` lists every message of ours that tells a person what to do. Its test causes the fault, sees
the message, does literally what it says, and ends with a run where `verify` finds nothing and the
bytes are those of a run that nothing happened to. A new message needs a row.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import remedy_faults as faults
from tests.support import remedy_settings_faults as settings_faults
from tests.support.fault_process import Blocks, BlockSpec
from tests.support.messages import Message, messages_with_remedies
from tests.support.paths import ROOT
from tests.support.remedies import FAILING_SEEDS, Person, Scene, write_configs
from transforms.core import storage
from transforms.core.seeding import derive
from transforms.core.stages import read_output, stage_folder
from transforms.engines.image.base import Painted
from transforms.images.caption_reader import CaptionRows

pytestmark = pytest.mark.xdist_group("remedies")


@pytest.fixture(scope="module", autouse=True)
def blocks() -> Iterator[None]:
    """Put blocks in place of what a diffusion model paints."""
    paint = Blocks.paint

    def paint_or_raise(engine: Blocks, texts: Sequence[str], seeds: Sequence[int]) -> Painted:
        if FAILING_SEEDS.intersection(seeds):
            raise RuntimeError("no such chair")
        return paint(engine, texts, seeds)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.images.ImageEngineSpec", BlockSpec)
        patch.setattr(Blocks, "paint", paint_or_raise)
        yield


@pytest.fixture(scope="module")
def bases(blocks: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Person]:
    """Make the run "whole", and "retried": two captions failed, and were painted by a retry."""
    folder = tmp_path_factory.mktemp("bases")
    write_configs(folder)
    whole = Person(str(folder / "whole"), folder)
    for job in ("captions", "curate", "images"):
        assert whole.do(job) == 0, whole.said
    retried = whole.copy(str(folder / "retried"))
    storage.delete_folder(f"{retried.run}/images")
    FAILING_SEEDS.update(first_seeds(whole))
    assert retried.do("images") == retried.do("retry-failed") == 0, retried.said
    assert storage.list_files(f"{retried.run}/images/failures").keys() == {
        "000/images-000001.parquet",
        "000/images-000004.parquet",
    }
    return {"whole": whole, "retried": retried}


def first_seeds(person: Person) -> set[int]:
    """Return the seeds of the first image of two captions, before any retry."""
    output = read_output(stage_folder(person.run, "images"))
    assert output is not None
    rows = CaptionRows.open(f"{person.run}/captions")
    captions = [*rows.read(3, 4), *rows.read(8, 9)]
    return {derive(output.metadata["generator_digest"], c.caption_id, 0, 0) for c in captions}


@pytest.fixture
def scene(
    bases: dict[str, Person], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Scene]:
    yield Scene(bases, first_seeds(bases["whole"]), monkeypatch, tmp_path)
    FAILING_SEEDS.clear()


Fault = Callable[[Scene], None] | str | None
"""Causes a fault in a scene and starts a command, which says a message. Or the name of another test
that does all this. Or None if the text is no remedy."""

TABLE: dict[str, list[tuple[str, Fault]]] = {
    "pipelines/__main__.py": [
        ("usage: ", None),
        ("retry-failed", None),
        ("paint the captions that failed", None),
        ("; run the same command again", "tests/pipelines/test_faults_killed.py::test_stopped"),
    ],
    "pipelines/curate.py": [
        ("captions are left after curation", faults.too_few_captions_are_left),
        ("but the config asks for", faults.more_captions_are_asked_for),
        (
            "{}: run the same command again to continue",
            faults.the_disk_is_full_during_deduplication,
        ),
        ("{}: run the same command again to continue", faults.the_disk_is_full_during_resharding),
        ("was not written", faults.curation_leaves_no_summary),
        ("damaged scratch files are made again", None),
        ("were damaged {} times", faults.scratch_files_are_damaged_again_and_again),
    ],
    "pipelines/index.py": [
        ("are not committed", faults.a_shard_is_lost_before_index),
        ("is lost: run", settings_faults.an_index_is_garbled_and_its_plan_is_lost),
    ],
    "pipelines/options.py": [
        (
            "several times at once",
            "tests/pipelines/test_main.py::test_processes_of_beam_are_refused",
        ),
    ],
    "pipelines/report/command.py": [
        (
            "holds nothing to report on",
            "tests/pipelines/report/test_command.py::test_a_run_that_is_not_there",
        ),
    ],
    "pipelines/report/corpus.py": [
        ("does without it", faults.curation_report_is_damaged),
    ],
    "pipelines/report/stages.py": [
        ("delete it, then run", settings_faults.settings_are_damaged_before_report),
        ("to write it again", settings_faults.a_plan_is_damaged_before_report),
    ],
    "pipelines/retry_failed.py": [
        ("is not complete", faults.images_lost_their_index_before_a_retry),
        ("dead letters of its captions", faults.dead_letters_are_lost),
    ],
    "pipelines/runner.py": [
        ("is lost: restore the settings", faults.settings_are_lost),
        ("{}: run the same command again to continue", faults.a_shard_cannot_be_published),
        ("but the config plans only", faults.fewer_shards_are_asked_for),
        ("are lost and made again", None),
        ("either keep {}", faults.sampled_captions_are_lost),
        (
            "shards are missing in {} (first: {}): run the same",
            faults.a_shard_vanishes_during_the_run,
        ),
        ("so the index does not list it", faults.a_shard_of_a_retry_is_lost),
        ("which deletes them", faults.a_shard_is_cut_off_and_the_index_is_lost),
        ("which deletes them", faults.a_shard_is_of_another_fingerprint),
        ("run the same command again to continue", None),
    ],
    "pipelines/verify.py": [
        ("which deletes them", faults.a_shard_is_garbled),
        ("run {} again", faults.a_worker_died_before_it_committed),
        ("run {}", faults.an_index_contradicts_the_commit_records),
        ("run {}", faults.an_index_that_contradicts_them_is_repaired),
        ("verify again", faults.a_process_left_a_file),
        ("do what the lines say", faults.a_file_is_unknown),
        ("are painted twice", faults.a_retried_caption_is_painted_twice),
    ],
    "trainer/checkpoints/files.py": [
        ("trainer.train", "tests/trainer/checkpoints/test_files.py::test_other_files_are_refused"),
    ],
    "trainer/cli.py": [
        ("Interrupted", "tests/trainer/test_cli.py::test_ctrl_c_asks_for_the_same_command"),
    ],
    "trainer/data/batch.py": [
        (
            "samples in a row",
            "tests/trainer/data/test_batch.py::"
            "test_when_nothing_can_be_used_the_stream_ends_with_a_sentence",
        ),
    ],
    "trainer/data/shard_reader.py": [
        ("is gone", faults.an_image_shard_is_lost_before_a_training),
        ("is gone", faults.a_shard_of_a_retry_is_lost_before_a_training),
        ("check its run", faults.an_image_shard_is_cut_off),
    ],
    "trainer/evaluate/datasets/sources.py": [
        (
            "unpack it again from",
            "tests/trainer/evaluate/test_public_sets.py::test_ade20k_has_a_mask_for_every_picture",
        ),
    ],
    "trainer/evaluate/feature_cache.py": [
        ("are computed again", None),
    ],
    "trainer/evaluate/states.py": [
        ("starts again", None),
    ],
    "trainer/replay.py": [
        ("Compute a step again", None),
    ],
    "trainer/train.py": [
        (
            "run the same command to continue",
            "tests/trainer/test_interruption.py::"
            "test_a_signal_saves_and_the_same_command_continues_bit_for_bit",
        ),
    ],
    "trainer/training/nonfinite.py": [
        (
            "examine it with",
            "tests/trainer/test_replay.py::"
            "test_the_same_again_is_refused_at_once_until_something_is_changed",
        ),
        (
            "delete it to train on",
            "tests/trainer/test_replay.py::test_a_note_counts_until_it_is_left_behind_or_deleted",
        ),
    ],
    "trainer/training/settings_history.py": [
        (
            "only a record of settings",
            "tests/trainer/training/test_settings_history.py::"
            "test_a_damaged_history_is_a_sentence_with_a_remedy",
        ),
    ],
    "transforms/core/commit.py": [
        ("delete it and run again", faults.a_worker_left_a_damaged_file),
    ],
    "transforms/core/dead_letters.py": [
        ("again", faults.dead_letters_are_damaged),
    ],
    "transforms/core/fingerprint.py": [
        ("was made with other settings", faults.other_settings),
        ("is damaged", settings_faults.settings_are_damaged),
        (
            "strict_versions is true",
            "tests/pipelines/test_runner.py::"
            "test_other_library_versions_are_named_or_refused_while_shards_are_missing",
        ),
        ("is damaged", settings_faults.a_bit_of_the_settings_is_flipped),
    ],
    "transforms/core/index.py": [
        ("did not fail again", faults.a_retried_caption_does_not_fail_again),
    ],
    "transforms/core/scratch.py": [
        ("free some space there", faults.the_scratch_disk_is_full),
    ],
    "transforms/core/shard_reader.py": [
        ("is not complete", faults.captions_lost_their_index),
        ("is not complete", faults.captions_lost_a_shard_before_images),
        ("changed while it was", faults.the_captions_change_meanwhile),
        ("check its run", faults.a_raw_shard_is_garbled_before_curate),
        ("check its run", faults.a_shard_is_garbled_before_report),
        ("to make it again", faults.a_shard_is_lost_before_report),
        ("to write it again", faults.an_index_is_garbled),
    ],
    "transforms/core/shards.py": [
        ("repair=true", None),
        ("delete it and run", faults.a_commit_record_is_damaged),
    ],
    "transforms/core/stages.py": [
        ("is lost, so the shards", settings_faults.plans_and_settings_are_lost_before_verify),
        ("to write it again", settings_faults.a_plan_is_damaged),
        ("to write it again", settings_faults.a_plan_of_curated_captions_is_damaged),
        ("to write it again", settings_faults.an_index_is_lost_and_its_plan_is_damaged),
        ("to write it again", settings_faults.the_config_of_a_run_is_damaged_before_repair),
        ("retry-failed", None),
    ],
    "transforms/core/storage/__init__.py": [
        ("nothing committed is lost", faults.the_disk_is_full),
    ],
    "transforms/curation/file_shuffle.py": [
        ("it is made again", None),
    ],
    "transforms/curation/limit.py": [
        ("run the same command again", None),
    ],
    "transforms/engines/hub.py": [
        (
            "try again later",
            "tests/transforms/engines/test_hub.py::"
            "test_a_hub_that_gives_no_answer_is_given_up_in_time",
        ),
    ],
    "transforms/engines/text/openai.py": [
        (
            "the endpoint",
            "tests/pipelines/test_captions_killed.py::"
            "test_an_engine_that_dies_stops_the_run_and_leaves_what_is_committed",
        ),
    ],
    "transforms/engines/watchdog.py": [
        ("the engine hangs", "tests/pipelines/test_faults_killed.py::test_engine_that_hangs"),
    ],
    "transforms/verify.py": [
        ("to write it again", faults.captions_of_a_retry_are_damaged),
        ("does not agree with the index", settings_faults.a_plan_has_other_numbers),
        ("does not agree with the index", settings_faults.a_plan_says_other_things),
        ("unknown file", faults.a_file_is_unknown),
        ("beyond the plan", faults.a_file_is_beyond_the_plan),
    ],
}
"""Module -> a part of each of its messages, and the fault that shows that the remedy works."""


@dataclass(frozen=True)
class Row:
    """A row of the table."""

    file: str
    part: str
    fault: Fault


ROWS = [Row(file, part, fault) for file, rows in TABLE.items() for part, fault in rows]


def rows_of(message: Message) -> list[Row]:
    """Return the rows of a message; if parts of several rows are in it, those of the longest."""
    rows = [row for row in ROWS if row.file == message.file and row.part in message.text]
    longest = max((len(row.part) for row in rows), default=0)
    return [row for row in rows if len(row.part) == longest]


def test_every_message_with_a_remedy_has_a_row() -> None:
    messages = list(messages_with_remedies())
    without = [f"{m.file}: {m.text}" for m in messages if not rows_of(m)]
    assert not without, "cause the fault, follow the remedy, and add a row to TABLE"
    used = {id(row) for message in messages for row in rows_of(message)}
    assert not [row for row in ROWS if id(row) not in used], "no message has such a part"


def test_the_tests_that_follow_other_remedies_exist() -> None:
    for row in ROWS:
        if isinstance(row.fault, str):
            file, _, name = row.fault.partition("::")
            assert f"def {name}(" in (ROOT / file).read_text(), row


FAULTS = list(dict.fromkeys(row.fault for row in ROWS if callable(row.fault)))


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.__name__ for fault in FAULTS])
def test_the_remedy_leads_to_a_healthy_run(fault: Callable[[Scene], None], scene: Scene) -> None:
    fault(scene)
    scene.person.heal()
    said = " ".join(scene.person.log)
    for row in (row for row in ROWS if row.fault is fault):
        texts = [m.text for m in messages_with_remedies() if row in rows_of(m)]
        patterns = [re.escape(text).replace(re.escape("{}"), ".*") for text in texts]
        assert any(re.search(pattern, said) for pattern in patterns), f"{texts} is not in {said}"
    scene.person.is_healthy(scene.expected)
