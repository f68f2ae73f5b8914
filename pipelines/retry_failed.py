"""Paint the captions that failed again, with other seeds, into additional shards.

`python -m pipelines retry-failed CONFIG` takes the config of a complete images stage. A retry is a
stage of its own in `images/retry-1`, so it can be killed, continued, run by several workers and
verified like any other. Its captions are the dead letters. When it is complete, the index of the
images lists its shards after all others. What fails in it is left to the next retry, in
`images/retry-2`. Settings other than those of the images are refused.
"""

import itertools
from collections.abc import Sequence

from pipelines.images import ImagesConfig, paint, stage
from pipelines.runner import check_versions, finish, is_complete, say
from transforms.core import storage
from transforms.core.commit import ShardBuild, discard_shard, is_whole
from transforms.core.counters import Tally
from transforms.core.dead_letters import dead_letters
from transforms.core.errors import DamagedFileError, MissingFileError, UnfinishedError
from transforms.core.fingerprint import claim
from transforms.core.index import complete_index, examine, write_index
from transforms.core.records import Caption
from transforms.core.shard_reader import CommittedShards
from transforms.core.shards import StageFolder
from transforms.core.stages import Stage, stage_folder
from transforms.images.producer import ImagesProducer

CONFIG = ImagesConfig


def run(config: ImagesConfig, flags: Sequence[str]) -> None:
    """Begin a retry, or continue one that is not complete; `flags` are Beam's.

    Raises:
        ConfigError: The images were made with other settings, or the device is missing.
        UnfinishedError: The images are not complete.
    """
    images, made_with = stage(config), dict[str, str]()
    if storage.exists(images.folder.run_yaml_url):
        # First of all: a retry with other settings would spoil the index of the images.
        made_with = claim(images.folder.run_yaml_url, images.fingerprint, images.config)
    fault = examine(images.folder, images.num_shards).fault
    if fault is not None:
        raise UnfinishedError(
            f"{images.folder.url} is not complete ({fault}): run `python -m pipelines images` "
            "until it is, then this command again"
        )
    before = images
    for number in itertools.count(1):
        if not _write_captions(images.folder.retry(number), before):
            say(f"{images.folder.url} has no dead letters that were not painted later")
            break
        before = stage(config, number)
        unfinished = not is_complete(before)
        if unfinished:
            check_versions(images, made_with)
        paint(config, before, flags)  # A complete one may have lost its run.yaml or plan.json.
        if unfinished:
            break
    finish(images)


def failed_captions(images: Stage) -> list[Caption]:
    """Return the captions of the dead letters of a complete images stage, in order.

    Raises:
        UnfinishedError: Dead letters are missing.
    """
    assert isinstance(images.producer, ImagesProducer)
    failed = []
    for shard, ids in dead_letters(images.folder):
        failed += [c for c in images.producer.captions(shard) if c.caption_id in ids]
    index = complete_index(images.folder)
    expected = sum(index.table["num_failures"].to_pylist()[: images.num_shards]) if index else 0
    if len(failed) != expected:
        folder = images.folder
        raise UnfinishedError(
            f"{folder.url}/failures holds {len(failed):,} dead letters of its captions, but the "
            f"index counts {expected:,}: run {folder.repair_command}, then {folder.commands}, then "
            "this command again"
        )
    return failed


def _is_whole(folder: StageFolder) -> bool:
    """Return whether the captions of a retry are complete and undamaged."""
    try:
        return all(shard.read() for shard in CommittedShards.open_complete(folder))
    except (DamagedFileError, MissingFileError):
        return False


def _write_captions(retry: StageFolder, before: Stage) -> bool:
    """Write the captions of a retry as a complete stage, once for all workers.

    Args:
        retry: Folder of the retry.
        before: What it retries.

    Returns:
        False if nothing failed, so that there is nothing to retry.

    Raises:
        UnfinishedError: Dead letters are missing.
    """
    folder = stage_folder(retry.url, "captions")
    if _is_whole(folder):
        return True
    captions = failed_captions(before)
    if not captions:
        return False
    if storage.exists(folder.commit_url(0)) and not is_whole(folder, 0):
        discard_shard(folder, 0)
    with ShardBuild(folder, 0) as build:
        build.write(captions)
        record = build.commit([str(c.ordinal) for c in captions], "dead letters", Tally())
    write_index(folder, [record], {"stage": "captions"})
    return True
