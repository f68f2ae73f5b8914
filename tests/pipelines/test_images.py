import hashlib
import io
import json
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
import webdataset
from PIL import Image

from pipelines.images import ImagesConfig, builtin_model, generator_digest, run, stage
from tests.support.captions import make_captions, write_captions
from tests.support.random_sd import write_random_sd
from tests.support.warm_process import WarmProcess
from transforms.core import storage
from transforms.core.errors import ConfigError, MissingFileError
from transforms.core.index import read_index
from transforms.engines.image.diffusers import DiffusersConfig

CAPTIONS = make_captions(11)
SHARDS = [CAPTIONS[:4], CAPTIONS[4:8], CAPTIONS[8:]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_random_sd(tmp_path_factory.mktemp("models") / "random-sd"))


def settings(url: str, model: str, **changes: Any) -> ImagesConfig:
    generator = {"num_steps": 2, "size": 32, "stored_size": 32, **changes.pop("generator", {})}
    engine = {"batch_size": 10, **changes.pop("engine", {})}
    fields = {"run": url, "model": model, "captions_per_shard": 3}
    return ImagesConfig.model_validate(
        {**fields, "generator": generator, "engine": engine, **changes}
    )


def shard_checksums(url: str) -> dict[str, str]:
    folder = storage.join(url, "images", "shards")
    return {
        name: hashlib.sha256(storage.read_bytes(storage.join(folder, name))).hexdigest()
        for name in storage.list_files(folder)
    }


def images_by_caption(url: str) -> dict[str, tuple[bytes, ...]]:
    """Read images with plain webdataset, from the paths in the index."""
    index = read_index(storage.join(url, "images", "index.parquet"))
    paths = [f"{index.folder}/{path}" for path in index.table["path"].to_pylist()]
    samples = webdataset.WebDataset(paths, shardshuffle=False)
    return {
        sample["txt"].decode(): tuple(sample[f"{number}.jpg"] for number in range(4))
        for sample in samples
    }


@pytest.fixture(scope="module")
def finished(model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the folder of a run with complete images."""
    url = str(tmp_path_factory.mktemp("finished") / "run")
    write_captions(f"{url}/captions", SHARDS)
    run(settings(url, model), [])
    return url


def test_plain_webdataset_reads_the_shards(finished: str) -> None:
    index = read_index(f"{finished}/images/index.parquet")
    assert index.table["num_samples"].to_pylist() == [3, 3, 3, 2]
    assert index.metadata["images_per_caption"] == "4"
    paths = [f"{index.folder}/{path}" for path in index.table["path"].to_pylist()]
    samples = list(webdataset.WebDataset(paths, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [c.caption_id for c in CAPTIONS]
    for sample, caption in zip(samples, CAPTIONS, strict=True):
        described = json.loads(sample["json"])
        assert sample["txt"].decode() == described["text"] == caption.text
        assert described["concept"] == "cat"
        assert described["generator"]["guidance"] == 2.5
        assert len(set(described["seeds"])) == 4
        for number in range(4):
            image = Image.open(io.BytesIO(sample[f"{number}.jpg"]))
            assert (image.format, image.size) == ("JPEG", (32, 32))


def test_another_folder_gets_the_same_bytes(finished: str, model: str, tmp_path: Path) -> None:
    url = str(tmp_path / "run")
    write_captions(f"{url}/captions", SHARDS)
    run(settings(url, model), [])
    assert shard_checksums(url) == shard_checksums(finished)


def test_the_same_captions_cut_otherwise_get_the_same_images(finished: str, model: str) -> None:
    url = f"memory://{uuid.uuid4().hex}/run"
    write_captions(f"{url}/captions", [CAPTIONS[6:], CAPTIONS[1:6]])
    run(settings(url, model, captions_per_shard=4, engine={"batch_size": 10}), [])
    names = storage.list_files(f"{url}/images/shards")
    tars = [storage.read_bytes(f"{url}/images/shards/{name}") for name in sorted(names)]
    assert len(tars) == 3
    expected = images_by_caption(finished)
    seen = 0
    for tar in tars:
        groups = webdataset.tariterators.tar_file_expander([{"url": "", "stream": io.BytesIO(tar)}])
        for sample in webdataset.tariterators.group_by_keys(groups):
            images = tuple(sample[f"{number}.jpg"] for number in range(4))
            assert images == expected[sample["txt"].decode()]
            seen += 1
    assert seen == 10


def test_run_again_loads_no_model(finished: str, model: str, tmp_path: Path) -> None:
    config = tmp_path / "images.yaml"
    config.write_text(settings(finished, model).model_dump_json())
    heavy = "('torch', 'diffusers', 'transformers', 'apache_beam')"
    script = (
        "import sys; from pipelines.__main__ import main; "
        f"code = main(['images', {str(config)!r}]); "
        f"print([m for m in {heavy} if m in sys.modules]); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "[]")
    assert "nothing to do" in done.stderr


def test_without_captions_it_says_what_comes_first(model: str, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="run `python -m pipelines curate` until"):
        stage(settings(str(tmp_path), model))


def test_other_captions_or_settings_are_refused(finished: str, model: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"generator\.num_steps: 2 there, 3 here"):
        run(settings(finished, model, generator={"num_steps": 3}), [])
    write_captions(f"{tmp_path}/captions", [CAPTIONS[:5]])
    with pytest.raises(ConfigError, match="captions_index_sha256"):
        run(settings(finished, model, captions=f"{tmp_path}/captions"), [])


def test_seeds_follow_the_generator_and_nothing_else(model: str, tmp_path: Path) -> None:
    found = DiffusersConfig().find_model(model, None, builtin_model)
    digest = generator_digest(settings("run", model), found)

    def same(**changes: Any) -> bool:
        return generator_digest(settings("run", model, **changes), found) == digest

    assert same(run="elsewhere", captions_per_shard=7, images_per_caption=2)
    assert same(engine={"batch_size": 3}, generator={"stored_size": 16}, encoding={"quality": 50})
    painting: list[dict[str, Any]] = [{"guidance": 3.0}, {"num_steps": 9}]
    changes: list[dict[str, Any]] = [{"seed": 1}, {"engine": {"dtype": "float16"}}]
    for change in [*changes, *({"generator": generator} for generator in painting)]:
        assert not same(**change)


NUM_SHARDS = 40


def start(config: Path) -> WarmProcess:
    """Start the stage as a process with one thread, so that two of them fit on a machine."""
    environment = {"OMP_NUM_THREADS": "1"}
    return WarmProcess("pipelines", "images", str(config), environment=environment)


def write_many_shards(folder: Path, model: str) -> tuple[Path, Path]:
    """Write a config with as many shards as captions, and its captions; return it and its run."""
    run, config = folder / "run", folder / "images.yaml"
    write_captions(f"{run}/captions", [make_captions(NUM_SHARDS)])
    changes: dict[str, Any] = {"captions_per_shard": 1, "generator": {"num_steps": 8}}
    config.write_text(settings(str(run), model, **changes).model_dump_json())
    return config, run


@pytest.fixture(scope="module")
def undisturbed(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of many shards that nothing disturbed."""
    config, run = write_many_shards(tmp_path_factory.mktemp("undisturbed"), model)
    assert start(config).wait() == 0
    return run


@pytest.mark.xdist_group("processes")
@pytest.mark.slow
def test_killed_and_started_again_ends_as_undisturbed(
    undisturbed: Path, model: str, tmp_path: Path
) -> None:
    config, url = write_many_shards(tmp_path, model)
    kills = 0
    for _ in range(2):
        process = start(config)
        before = len(storage.list_files(f"{url}/images/commits"))
        while process.poll() is None:
            if len(storage.list_files(f"{url}/images/commits")) >= before + 5:
                process.send_signal(signal.SIGKILL)
                kills += process.wait() == -signal.SIGKILL
            time.sleep(0.01)
    assert kills == 2, "both kills must hit a working process"
    assert not (url / "images" / "_SUCCESS").exists()
    assert start(config).wait() == 0
    assert shard_checksums(str(url)) == shard_checksums(str(undisturbed))
    index = read_index(f"{url}/images/index.parquet").table["sha256"].to_pylist()
    assert index == read_index(f"{undisturbed}/images/index.parquet").table["sha256"].to_pylist()


@pytest.mark.xdist_group("processes")
@pytest.mark.slow
def test_two_processes_at_once_make_every_shard_once(
    undisturbed: Path, model: str, tmp_path: Path
) -> None:
    config, url = write_many_shards(tmp_path, model)
    processes = [start(config), start(config)]
    assert [process.wait() for process in processes] == [0, 0]
    assert shard_checksums(str(url)) == shard_checksums(str(undisturbed))
    assert len(storage.list_files(f"{url}/images/commits")) == NUM_SHARDS
