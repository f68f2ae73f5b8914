"""What a config takes from the environment is nowhere in a run, and has its effect."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import yaml

from pipelines import backgrounds
from pipelines.__main__ import main
from pipelines.captions import CaptionsConfig
from pipelines.runner import say
from tests.support.random_sd import write_random_sd
from transforms.core import storage
from transforms.core.config import load_config
from transforms.core.progress import LogHandler
from transforms.core.stages import find_outputs

SECRET = "s3cr3t-of-this-run"
CAPTIONS = """
run: ${oc.env:RUN_FOLDER}/run
num_captions: 6
captions_per_shard: 3
model: a-model-of-${oc.env:SECRET}
engine: {name: openai, base_url: "http://user:${oc.env:SECRET}@127.0.0.1:9/v1", max_retries: 0}
captions: {variant: file, captions_file: "in-${oc.env:SECRET}/captions.txt"}
curation: {near_duplicate_threshold: "${oc.env:THRESHOLD}"}
"""
IMAGES = """
run: ${oc.env:RUN_FOLDER}/run
seed: ${oc.env:SEED}
model: ${oc.env:SECRET}
captions_per_shard: ${oc.env:PER_SHARD}
images_per_caption: ${oc.env:PER_CAPTION}
engine: {batch_size: 6}
generator: {num_steps: 1, size: 32, stored_size: 32, negative_prompt: "not ${oc.env:SECRET}"}
"""


def files_with(folder: Path, text: str) -> list[str]:
    return [
        name
        for name in storage.list_files(str(folder))
        if text.encode() in (folder / name).read_bytes()
    ]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a run; configs, captions and model are in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RUN_FOLDER", str(tmp_path / "there"))
    monkeypatch.setenv("SECRET", SECRET)
    monkeypatch.setenv("SEED", "918273")
    monkeypatch.setenv("THRESHOLD", "0.812345")
    monkeypatch.setenv("PER_SHARD", "3")
    monkeypatch.setenv("PER_CAPTION", "1")
    (tmp_path / "captions.yaml").write_text(CAPTIONS)
    (tmp_path / "images.yaml").write_text(IMAGES)
    captions = "".join(f"a cat on chair number {number}\n" for number in range(9))
    (tmp_path / f"in-{SECRET}").mkdir()
    (tmp_path / f"in-{SECRET}" / "captions.txt").write_text(captions)
    return tmp_path / "there" / "run"


def test_a_secret_is_nowhere_in_a_run(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write_random_sd(Path(SECRET))
    stages = {"captions": "captions", "curate": "captions", "images": "images"}
    commands = [[stage, f"{file}.yaml"] for stage, file in stages.items()]
    for command in commands:
        assert main(command) == 0, command
    assert main(["report", str(run)]) == 0
    assert files_with(run, SECRET) == []
    assert files_with(run / "images", "918273") == []
    written = yaml.safe_load((run / "images" / "run.yaml").read_text())
    assert written["config"]["model"] == written["fields"]["model"]["from"] == "${oc.env:SECRET}"

    assert files_with(run / "captions", "0.812345") == []
    report = json.loads((run / "report.json").read_text())
    assert report["stages"]["images"]["images_per_sample"] == 1
    (images,) = find_outputs(str(run), ["images"])
    assert [len(images.expected_ids()(shard) or ()) for shard in range(2)] == [3, 3]

    for command in commands:
        assert main(command) == 0, command
    assert main(["verify", str(run)]) == 0
    assert main(["index", str(run)]) == 0
    monkeypatch.setenv("SEED", "918274")
    assert main(["images", "images.yaml"]) == 2
    assert "seed" in capfd.readouterr().err.splitlines()[-1]


def test_messages_do_not_show_a_secret(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["images", "images.yaml"]) == 1
    Path(f"in-{SECRET}", "captions.txt").unlink()
    assert main(["captions", "captions.yaml"]) == 2
    shutil.copy("captions.yaml", "model.yaml")
    concepts = "concepts=${oc.env:SECRET}.yaml"
    assert main(["captions", "model.yaml", "captions.variant=full", concepts]) == 2
    assert main(["images", "images.yaml", "engine.device=${oc.env:SECRET}"]) == 2
    output = capfd.readouterr()
    assert SECRET not in output.out + output.err
    assert "${oc.env:SECRET}" in output.err


def test_an_endpoint_that_fails_shows_no_secret(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("concepts.txt").write_text("cat\ndog\n")
    Path("scratch").mkdir()
    monkeypatch.setenv("TMPDIR", str(Path("scratch").absolute()))
    monkeypatch.setattr("tempfile.tempdir", None)
    overrides = ["captions.variant=full", "concepts=concepts.txt", "engine.max_retries=0"]
    assert main(["captions", "captions.yaml", *overrides]) == 1
    output = capfd.readouterr()
    assert SECRET not in output.out + output.err
    assert "http://user:${oc.env:SECRET}@127.0.0.1:9/v1 cannot be reached" in output.err
    assert files_with(run.parents[1] / "scratch", SECRET) == []


def test_lines_of_progress_and_log_show_no_secret(
    run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    Path(f"{SECRET}.yaml").write_text(
        "sources:\n"
        "- {source: pets, kind: object, share: 1, concepts: [cat]}\n"
        "- {source: things, kind: object, share: 1, concepts: [kettle]}\n"
    )
    arguments = ["captions.variant=full", "concepts=${oc.env:SECRET}.yaml"]
    assert main(["concepts", "captions.yaml", *arguments]) == 0
    say(f"{SECRET} is complete")
    log = logging.getLogger("a-test")
    log.addHandler(handler := LogHandler())
    log.warning("loading %s", SECRET)
    log.removeHandler(handler)
    output = capfd.readouterr()
    assert "The shares in ${oc.env:SECRET}.yaml add up to 2" in output.out
    assert "${oc.env:SECRET} is complete" in output.err
    assert "loading ${oc.env:SECRET}" in output.err
    assert SECRET not in output.out + output.err
    assert files_with(run, SECRET) == []


def test_the_backgrounds_stage_writes_references(run: Path) -> None:
    Path("concepts.txt").write_text("cat\ndog\n")
    given = load_config(CaptionsConfig, "captions.yaml", ["concepts=concepts.txt"])
    planned = backgrounds.stage(given)
    assert planned.config["model"] == "a-model-of-${oc.env:SECRET}"
    assert SECRET in planned.fingerprint.fields["model"]


def test_lists_do_not_read_the_environment(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Path("list.yaml").write_text(
        "sources: [{source: pets, kind: object, share: 1, concepts: ['${oc.env:SECRET}']}]\n"
    )
    arguments = ["concepts", "captions.yaml", "captions.variant=full", "concepts=list.yaml"]
    assert main(arguments) == 2
    error = capfd.readouterr().err
    assert "list.yaml: key 'sources.0.concepts.0' contains '${'" in error
    assert SECRET not in error
