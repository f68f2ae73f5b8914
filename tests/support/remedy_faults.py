"""Faults of a run: each starts a command that says how to continue."""

import dataclasses
import os
import time
from pathlib import Path
from typing import Any

import pipelines.captions
from pipelines.verify import ABANDONED_S
from tests.support.remedies import TEXTS, Scene, write_configs
from transforms.core import scratch, storage
from transforms.core.errors import StorageError
from transforms.core.shard_reader import CommittedShards
from transforms.core.shards import encode_commit, read_commit
from transforms.core.stages import Stage, stage_folder

IMAGE = "images/shards/000/images-000003.tar"
IMAGE_COMMIT = "images/commits/000/images-000003.json"
RAW = "captions-raw/shards/000/captions-000001.parquet"


def garble(content: bytes) -> bytes:
    return content[: len(content) // 2] + b"?" + content[len(content) // 2 + 1 :]


def halve(content: bytes) -> bytes:
    return content[: len(content) // 2]


def fails(scene: Scene, job: str, *arguments: str) -> None:
    """Start a job, which must end with an error."""
    assert scene.person.do(job, *arguments) != 0, scene.person.log


def too_few_captions_are_left(scene: Scene) -> None:
    scene.delete_folders("captions-raw", "captions", "images")
    scene.expected = None
    write_configs(scene.tmp, [*TEXTS[:10], *TEXTS[:10], *TEXTS[10:]])
    scene.person.configs = scene.tmp
    assert scene.person.do("captions") == 0
    fails(scene, "curate")


def more_captions_are_asked_for(scene: Scene) -> None:
    scene.delete_folders("captions", "images")
    scene.expected = None
    fails(scene, "curate", "captions.oversampling=2")


def the_disk_is_full_during_deduplication(scene: Scene) -> None:
    scene.delete_folders("captions", "images")
    scene.fail_once(storage, "replace_bytes", StorageError(None, "full"), "/parts/")
    fails(scene, "curate")
    scene.person.heal()
    assert scene.person.do("images") == 0


def the_disk_is_full_during_resharding(scene: Scene) -> None:
    scene.delete("captions/_SUCCESS", "captions/commits/000/captions-000001.json")
    scene.delete("captions/shards/000/captions-000001.parquet")
    scene.fail_once(storage, "publish_file", StorageError(None, "full"), "/captions/")
    fails(scene, "curate")


def curation_leaves_no_summary(scene: Scene) -> None:
    scene.delete_folders("captions", "images")
    with scene.patch.context() as patch:
        patch.setattr("pipelines.curate.run_pipeline", lambda *arguments: None)
        fails(scene, "curate")
    scene.person.heal()
    assert scene.person.do("images") == 0


def scratch_files_are_damaged_again_and_again(scene: Scene) -> None:
    scene.delete_folders("captions", "images")
    with scene.patch.context() as patch:
        patch.setattr("pipelines.curate.MAX_RESTARTS", 2)
        patch.setattr("transforms.curation.file_shuffle.write_rows", _write_nothing)
        fails(scene, "curate")
    scene.person.heal()
    assert scene.person.do("images") == 0


def _write_nothing(rows: object, url: str) -> None:
    storage.replace_bytes(b"", url)


def a_shard_is_lost_before_index(scene: Scene) -> None:
    scene.delete(IMAGE)
    fails(scene, "index")


def curation_report_is_damaged(scene: Scene) -> None:
    scene.expected = None
    scene.change("captions/curation.json", lambda _: b'{"balance": 3}')
    fails(scene, "report")


def images_lost_their_index_before_a_retry(scene: Scene) -> None:
    scene.use("retried")
    scene.delete("images/index.parquet")
    fails(scene, "retry-failed")


def dead_letters_are_lost(scene: Scene) -> None:
    scene.use("retried")
    scene.delete_folders("images/retry-1")
    assert scene.person.do("index") == 0
    scene.delete("images/failures/000/images-000004.parquet")
    fails(scene, "retry-failed")


def dead_letters_are_damaged(scene: Scene) -> None:
    scene.use("retried")
    scene.change("images/failures/000/images-000004.parquet", lambda _: b"PAR1")
    fails(scene, "status")


def settings_are_lost(scene: Scene) -> None:
    scene.delete("images/run.yaml")
    fails(scene, "images", "seed=1")
    # Restore the settings. The other way is another run.
    assert scene.person.do("images") == 0


def a_shard_cannot_be_published(scene: Scene) -> None:
    scene.delete(IMAGE)
    scene.fail_once(storage, "publish_file", StorageError(None, "full"), ".tar")
    fails(scene, "images")


def the_disk_is_full(scene: Scene) -> None:
    scene.delete(IMAGE)
    full = OSError(28, "No space left on device")
    scene.fail_once(storage.local, "create_from_file", full, ".tar")
    fails(scene, "images")


def the_scratch_disk_is_full(scene: Scene) -> None:
    scene.delete(IMAGE)
    scene.fail_once(scratch, "_locked_folder", OSError(28, "No space left on device"))
    fails(scene, "images")


def fewer_shards_are_asked_for(scene: Scene) -> None:
    fails(scene, "captions", "captions.oversampling=1")
    assert scene.person.do("captions", "captions.oversampling=1.5") == 0


def _sampled(config: pipelines.captions.CaptionsConfig) -> Stage:
    """Return the stage as if a model sampled its captions."""
    return dataclasses.replace(_captions_stage(config), feeds=stage_folder(config.run, "captions"))


_captions_stage = pipelines.captions.stage


def sampled_captions_are_lost(scene: Scene) -> None:
    scene.patch.setattr(pipelines.captions, "stage", _sampled)
    scene.delete(RAW)
    before = storage.list_times(scene.url("captions-raw"))
    fails(scene, "captions")
    assert storage.list_times(scene.url("captions-raw")) == before
    # The one way: the curated captions are all that later stages read.
    assert scene.person.do("images") == 0
    assert scene.person.do("verify", "stages=[captions,images]") == 0
    # The other way.
    scene.person.run = str(scene.tmp / "another")
    for job in ("captions", "curate", "images"):
        assert scene.person.do(job) == 0


def a_shard_vanishes_during_the_run(scene: Scene) -> None:
    scene.delete(IMAGE)
    with scene.patch.context() as patch:
        patch.setattr("pipelines.runner._produce", lambda *arguments: None)
        fails(scene, "images")


def a_shard_of_a_retry_is_lost_before_a_training(scene: Scene) -> None:
    scene.use("retried")
    scene.delete("images/retry-1/shards/000/images-000000.tar")
    assert scene.person.train() != 0


def a_shard_of_a_retry_is_lost(scene: Scene) -> None:
    scene.use("retried")
    scene.delete("images/retry-1/shards/000/images-000000.tar")
    assert scene.person.do("images") == 0
    scene.person.follow(scene.person.said)


def a_shard_is_cut_off_and_the_index_is_lost(scene: Scene) -> None:
    scene.change(IMAGE, halve)
    scene.delete("images/index.parquet")
    fails(scene, "images")


def a_shard_is_of_another_fingerprint(scene: Scene) -> None:
    record = read_commit(stage_folder(scene.person.run, "images"), 3)
    other = dataclasses.replace(record, fingerprint="0" * 32)
    storage.replace_bytes(encode_commit(other), scene.url(IMAGE_COMMIT))
    scene.delete("images/_SUCCESS")
    fails(scene, "images")


def a_shard_is_garbled(scene: Scene) -> None:
    scene.change(IMAGE, garble)
    fails(scene, "verify")


def a_worker_died_before_it_committed(scene: Scene) -> None:
    scene.delete(IMAGE_COMMIT)
    fails(scene, "verify")


def an_index_contradicts_the_commit_records(scene: Scene) -> None:
    other = read_commit(folder := stage_folder(scene.person.run, "captions-raw"), 1)
    storage.delete(folder.commit_url(1))
    wrong = dataclasses.replace(other, num_samples=7)
    storage.publish_bytes(encode_commit(wrong), folder.commit_url(1))
    assert scene.person.do("index", "stage=captions-raw") == 0
    storage.replace_bytes(encode_commit(other), folder.commit_url(1))
    fails(scene, "verify")


def an_index_that_contradicts_them_is_repaired(scene: Scene) -> None:
    an_index_contradicts_the_commit_records(scene)
    fails(scene, "verify", "repair=true")
    assert not storage.exists(scene.url("captions-raw/index.parquet"))


def a_process_left_a_file(scene: Scene) -> None:
    path = Path(scene.url("images/shards/000/.images-000001.tar.0123456789ab.part"))
    path.write_bytes(b"half of it")
    written = time.time() - ABANDONED_S - 60
    os.utime(path, (written, written))
    fails(scene, "verify")


def a_file_is_unknown(scene: Scene) -> None:
    storage.publish_bytes(b"", scene.url("images/shards/000/notes.txt"))
    fails(scene, "verify")


def a_file_is_beyond_the_plan(scene: Scene) -> None:
    storage.publish_bytes(b"", scene.url("images/commits/000/images-000099.json"))
    fails(scene, "verify")


def a_retried_caption_does_not_fail_again(scene: Scene) -> None:
    scene.use("retried")
    scene.paint_everything()
    for shard in (1, 4):  # Those with dead letters.
        scene.change(f"images/shards/000/images-{shard:06d}.tar", garble)
    assert scene.person.do("verify", "repair=true") == 1
    fails(scene, "images")
    scene.expected = scene.bases["whole"]  # Nothing has failed in the end.


def a_retried_caption_is_painted_twice(scene: Scene) -> None:
    a_retried_caption_does_not_fail_again(scene)
    fails(scene, "verify")


def an_image_shard_is_lost_before_a_training(scene: Scene) -> None:
    scene.delete(IMAGE)
    assert scene.person.train() != 0


def an_image_shard_is_cut_off(scene: Scene) -> None:
    scene.change(IMAGE, halve)
    assert scene.person.train() != 0


def a_worker_left_a_damaged_file(scene: Scene) -> None:
    scene.delete(IMAGE_COMMIT)
    scene.change(IMAGE, halve)
    fails(scene, "images")


def other_settings(scene: Scene) -> None:
    # One way: restore them.
    fails(scene, "images", "seed=1")
    assert scene.person.do("images") == 0
    # The third way; the second is another run. The new seed makes other images.
    fails(scene, "images", "seed=1")
    scene.delete_folders("images")
    assert scene.person.do("images", "seed=1") == 0
    assert scene.person.do("verify") == 0
    scene.delete_folders("images")
    assert scene.person.do("images") == 0


def captions_lost_their_index(scene: Scene) -> None:
    scene.delete("captions-raw/index.parquet")
    fails(scene, "curate")


def captions_lost_a_shard_before_images(scene: Scene) -> None:
    scene.delete("captions/shards/000/captions-000000.parquet", IMAGE)
    fails(scene, "images")


def the_captions_change_meanwhile(scene: Scene) -> None:
    scene.delete(IMAGE)
    opened, calls = CommittedShards.open.__func__, []  # type: ignore[attr-defined]

    def third_is_another(cls: type[CommittedShards], *arguments: Any) -> CommittedShards:
        calls.append(arguments)
        found: CommittedShards = opened(cls, *arguments)
        # The launching process opens them twice; the third time is in the worker.
        return dataclasses.replace(found, checksum="0" * 64) if len(calls) == 3 else found

    scene.patch.setattr(CommittedShards, "open", classmethod(third_is_another))
    fails(scene, "images")


def a_shard_is_garbled_before_report(scene: Scene) -> None:
    scene.change(IMAGE, garble)
    fails(scene, "report")


def a_raw_shard_is_garbled_before_curate(scene: Scene) -> None:
    scene.delete_folders("captions", "images")
    scene.change(RAW, garble)
    fails(scene, "curate")
    scene.person.heal()
    assert scene.person.do("curate") == scene.person.do("images") == 0


def a_shard_is_lost_before_report(scene: Scene) -> None:
    scene.delete(IMAGE)
    fails(scene, "report")


def an_index_is_garbled(scene: Scene) -> None:
    scene.change("captions-raw/index.parquet", garble)
    fails(scene, "curate")


def a_commit_record_is_damaged(scene: Scene) -> None:
    scene.change(IMAGE_COMMIT, halve)
    fails(scene, "report")


def captions_of_a_retry_are_damaged(scene: Scene) -> None:
    scene.use("retried")
    scene.change("images/retry-1/captions/shards/000/captions-000000.parquet", garble)
    fails(scene, "verify")
