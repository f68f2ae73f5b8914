import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.model_hub import ANSWERS, Hub, serving_models
from tests.support.paths import ROOT
from transforms.core.errors import ConfigError
from transforms.engines.hub import hub_commit
from transforms.engines.model_refs import Model, loading

MARKER = "config.json"
COMMIT = ANSWERS["open"][1]["X-Repo-Commit"]
TOKEN = "hf_a-s3cr3t-of-this-account"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Run a hub that this process asks, without a token and with an empty cache."""
    from huggingface_hub import constants

    with serving_models() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 1)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield server


def refusal(name: str) -> str:
    with pytest.raises(ConfigError) as caught:
        hub_commit(f"owner/{name}", "a-branch", MARKER)
    sentence = str(caught.value)
    assert sentence.startswith(f"key 'model' has value 'owner/{name}': no such folder, and ")
    assert "\n" not in sentence
    return sentence.split(", and ", 1)[1]


def test_what_the_hub_refuses_is_told_apart(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    gated = f"owner/gated is gated: accept its licence at {hub.url}/owner/gated"
    private = f"{hub.url} has no model of that name, or it is private"
    assert refusal("gated") == f"{gated} and log in (HF_TOKEN)"
    assert refusal("private") == f"{private}: log in (HF_TOKEN)"
    assert refusal("revision").endswith("no revision 'a-branch': change key 'revision'")
    assert refusal("entry").endswith("owner/entry has no config.json, so this stage cannot use it")
    assert refusal("website").startswith(f"{hub.url} does not answer as a hub: check HF_ENDPOINT")
    assert set(hub.tokens) == {None}
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert refusal("gated") == f"{gated} with the account of your token (HF_TOKEN)"
    assert refusal("private") == f"{private}: your token (HF_TOKEN) may not read it"
    assert refusal("token").endswith("refuses your token (HF_TOKEN): make a new one (HTTP 401)")
    assert hub.tokens[-3:] == [f"Bearer {TOKEN}"] * 3


def test_a_hub_that_gives_no_answer_is_given_up_in_time(hub: Hub) -> None:
    started = time.monotonic()
    silent = refusal("silent")
    assert silent.startswith(f"{hub.url} cannot be reached")
    assert silent.endswith("or wait longer than 1 s with HF_HUB_ETAG_TIMEOUT=SECONDS")
    assert "answers with HTTP 503: try again later" in refusal("down")
    hub.shutdown()
    hub.server_close()
    assert "cannot be reached (ConnectError)" in refusal("open")
    assert time.monotonic() - started < 6


def test_it_is_asked_again_as_long_as_one_waits(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 30)
    monkeypatch.setattr("transforms.engines.hub.RETRY_AFTER_S", 0.05)
    monkeypatch.setitem(ANSWERS, "busy", ANSWERS["down"])

    def pause(seconds: float) -> None:
        if hub.num_asked == 3:
            ANSWERS["busy"] = ANSWERS["open"]

    monkeypatch.setattr("transforms.engines.hub.time.sleep", pause)
    assert hub_commit("owner/busy", None, MARKER) == COMMIT
    assert hub.num_asked == 4


def test_the_copy_of_this_machine_is_used_while_the_hub_gives_no_answer(
    hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("down", "gated", "open"):
        folder = tmp_path / f"models--owner--{name}"
        (folder / "snapshots" / ("f" * 40)).mkdir(parents=True)
        (folder / "snapshots" / ("f" * 40) / MARKER).write_text("{}")
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text("f" * 40)
    assert hub_commit("owner/down", None, MARKER) == "f" * 40
    assert hub.num_asked == 1, "nobody waits for a hub that is not needed"
    assert hub_commit("owner/gated", None, MARKER) == "f" * 40
    assert "using the copy of owner/gated on this machine: owner/gated is gated" in caplog.text
    assert hub_commit("owner/open", None, MARKER) == COMMIT, "the hub has a newer one"
    assert hub_commit("owner/open", "f" * 40, MARKER) == "f" * 40
    assert hub.num_asked == 3, "a commit never changes"


def test_a_worker_without_the_token_says_so(hub: Hub) -> None:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    model = Model("owner/gated", COMMIT, "hub:owner/gated")
    with pytest.raises(ConfigError, match="owner/gated is gated"), loading(model):
        try:
            get_hf_file_metadata(hf_hub_url("owner/gated", "model.safetensors"))
        except OSError as error:
            raise RuntimeError("the library that loads models says something else") from error
    with pytest.raises(ZeroDivisionError), loading(model):
        raise ZeroDivisionError


def test_a_stage_names_the_remedy_and_keeps_the_token_to_itself(hub: Hub, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipelines", "captions", "pipelines/configs/demo.yaml"]
    settings = [f"run={tmp_path}/run", "model=owner/gated"]
    environment = {
        **os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "0",
    }  # fmt: skip
    ended = subprocess.run(
        [*command, *settings], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert f"accept its licence at {hub.url}/owner/gated with the account" in ended.stderr
    assert ended.returncode == 2
    assert f"Bearer {TOKEN}" in hub.tokens
    assert TOKEN not in ended.stdout + ended.stderr
    assert not any(
        TOKEN.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()
    )
