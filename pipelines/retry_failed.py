"""Paint the captions that failed again, with other seeds, into additional shards.

`python -m pipelines retry-failed CONFIG` takes the config of a complete images stage. A retry is a
stage of its own in `images/retry-1`, so it can be killed, continued, run by several workers and
verified like any other. Its captions are the dead letters. When it is complete, the index of the
images lists its shards after all others. What fails in it is left to the next retry, in
`images/retry-2`. Settings other than those of the images are refused.
"""

from collections.abc import Sequence

from pipelines.images import ImagesConfig, stage
from pipelines.options import runs_here
from pipelines.runner import finish, is_complete, run_stage, say
from transforms.core import storage
from transforms.core.commit import ShardBuild
from transforms.core.counters import Tally
from transforms.core.dead_letters import dead_letters
from transforms.core.errors import UnfinishedError
from transforms.core.fingerprint import claim
from transforms.core.index import read_success, write_index
from transforms.core.records import Caption
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
    images = stage(config)
    if storage.exists(images.folder.run_yaml_url):
        # First of all: a retry with other settings would spoil the index of the images.
        claim(images.folder.run_yaml_url, images.fingerprint, images.config)
    if not is_complete(images):
        raise UnfinishedError(
            f"{images.folder.url} is not complete: run `python -m pipelines images` until it is, "
            "then this command again"
        )
    number = 1
    while read_success(images.folder.retry(number)) is not None:
        number += 1
    folder = stage_folder(images.folder.retry(number).url, "captions")
    if read_success(folder) is None:
        failed = failed_captions(images if number == 1 else stage(config, number - 1))
        if failed:
            _write_captions(folder, failed)
        else:
            say(f"{images.folder.url} has no dead letters that were not painted later")
    if read_success(folder) is not None:
        retry = stage(config, number)
        if runs_here(flags) and not is_complete(retry):
            config.engine.check_device()
        run_stage(retry, flags)
    finish(images)


def failed_captions(images: Stage) -> list[Caption]:
    """Return the captions of the dead letters of a complete images stage, in order."""
    assert isinstance(images.producer, ImagesProducer)
    failed = []
    for shard, ids in dead_letters(images.folder):
        failed += [c for c in images.producer.captions(shard) if c.caption_id in ids]
    return failed


def _write_captions(folder: StageFolder, captions: Sequence[Caption]) -> None:
    """Write the captions of a retry as a complete stage, once for all workers."""
    with ShardBuild(folder, 0) as build:
        build.write(captions)
        record = build.commit([str(c.ordinal) for c in captions], "dead letters", Tally())
    write_index(folder, [record], {"stage": "captions"})
