"""The cluster's files: what they name exists, what runs is pinned and unprivileged, nothing is open or in the clear."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from conftest import ROOT

from dpgan.cluster import start_ray
from dpgan.errors import UserError

INFRA = ROOT / "infra"
COMPOSE: dict[str, Any] = yaml.safe_load((INFRA / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OBJECTS = [o for path in sorted((INFRA / "kubernetes").glob("*.yaml")) for o in yaml.safe_load_all(path.read_text())]
POOL = json.loads((INFRA / "kubernetes/work-pool.json").read_text())
# The Secrets that docs/cluster.md makes, and their keys.
SECRETS = {
    "s3": {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"},
    "databases": {"mlflow", "prefect"},
    "mlflow-admin": {"password", "session"},
    "mlflow-account": {"MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"},
    "prefect": {"login"},
    "ray": {"auth_token"},
}


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, pod) of everything that runs on Kubernetes."""
    for item in OBJECTS:
        if item["kind"] == "Deployment":
            yield item["metadata"]["name"], item["spec"]["template"]["spec"]
        if item["kind"] == "RayCluster":
            for group in (item["spec"]["headGroupSpec"], *item["spec"]["workerGroupSpecs"]):
                yield "ray", group["template"]["spec"]
    yield "flow", POOL["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]


def walk(node: Any) -> Iterator[dict[str, Any]]:
    """Every mapping within a document."""
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from walk(child)


def named(kind: str) -> set[str]:
    return {item["metadata"]["name"] for item in OBJECTS if item["kind"] == kind}


def commands() -> Iterator[list[str]]:
    """Every command of ours that a container runs."""
    gpu = yaml.safe_load((INFRA / "compose.gpu.yaml").read_text())["services"]
    for service in (*SERVICES.values(), *gpu.values()):
        if service.get("command", [""])[0] in ("mlflow", "prefect", "ray"):
            yield service["command"]
    for _, pod in pods():
        yield from (c["command"] for c in pod["containers"] if "command" in c)


def test_compose_names_only_what_there_is() -> None:
    for name, service in SERVICES.items():
        assert set(service.get("depends_on", {})) <= set(SERVICES), name
        assert set(service.get("networks", [])) <= set(COMPOSE["networks"]), name
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            assert (INFRA / source).exists() if source.startswith(".") else source in COMPOSE["volumes"], mount
        for value in service.get("environment", {}).values():
            for host in re.findall(r"(?:https?://|@)([a-z0-9-]+):\d", str(value)):
                assert host in {*SERVICES, "127"}, value
    healthy = {dep for s in SERVICES.values() for dep, how in s.get("depends_on", {}).items()
               if how["condition"] == "service_healthy"}  # fmt: skip
    assert all("healthcheck" in SERVICES[name] for name in healthy)


def test_compose_asks_for_every_secret_and_holds_none() -> None:
    text = (INFRA / "compose.yaml").read_text()
    asked = {*re.findall(r"\$\{(\w+)", text), "COMPOSE_PROJECT_NAME"}
    example = dict(line.split("=", 1) for line in (INFRA / ".env.example").read_text().splitlines() if "=" in line[:30])
    assert asked == set(example)
    secret = {name for name in asked if re.search("PASSWORD|KEY|TOKEN", name)}
    assert {name for name in secret if example[name]} == {"S3_ACCESS_KEY"}  # an account's name
    for name in secret:
        assert f"${{{name}:?" in text, f"{name} must be asked for, not defaulted"
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|TOKEN|AUTH_STRING", name):
                assert "${" in value, name
    ignored = subprocess.run(["git", "check-ignore", "-q", "infra/.env"], cwd=ROOT, check=False)
    assert ignored.returncode == 0


@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="docker-compose (Debian's package) is not installed")
@pytest.mark.parametrize("more", [[], ["-f", "compose.gpu.yaml"]], ids=["cpu", "gpu"])
def test_docker_compose_reads_it(more: list[str], tmp_path: Path) -> None:
    filled = re.sub(r"^(\w+)=$", r"\1=filled", (INFRA / ".env.example").read_text(), flags=re.M)
    (tmp_path / ".env").write_text(filled)
    command = ["docker-compose", "--env-file", str(tmp_path / ".env"), "-f", "compose.yaml", *more, "config"]
    done = subprocess.run(command, cwd=INFRA, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert set(yaml.safe_load(done.stdout)["services"]) == set(SERVICES)
    assert "variable is not set" not in done.stderr


def test_compose_is_closed_and_unprivileged() -> None:
    for name, service in SERVICES.items():
        assert service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert not service.get("privileged"), name
        ours = service["image"].startswith("${DPGAN_IMAGE")
        assert ours or (service["user"] != "root" and re.search(r":v?\d+\.\d+", service["image"])), name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
    assert {n for n, s in SERVICES.items() if "ports" in s} == {"mlflow", "prefect"}
    assert COMPOSE["networks"]["inner"] == {"internal": True}
    assert all(SERVICES[name]["networks"] == ["inner"] for name in ("postgres", "s3", "ray-head", "ray-worker"))
    assert "basic-auth" in SERVICES["mlflow"]["command"]
    assert "PREFECT_SERVER_API_AUTH_STRING" in SERVICES["prefect"]["environment"]
    assert all(SERVICES[n]["environment"]["RAY_AUTH_MODE"] == "token" for n in ("ray-head", "ray-worker"))


def test_the_image_is_pinned_and_runs_as_nobody_special() -> None:
    text = (INFRA / "Dockerfile").read_text()
    stages = {"system", "environment", "python"}
    for image in re.findall(r"^FROM (\S+)", text, re.M):
        assert image in stages or re.search(r":\d+\.\d+\.\d+", image), image
    assert re.findall(r"^USER (.*)", text, re.M) == ["10001:10001"]
    allowed = (ROOT / ".dockerignore").read_text()
    for sources in re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.M):
        for source in sources.split():
            assert (ROOT / source).exists(), source
            assert f"!{source}\n" in allowed, source


def objects() -> Iterator[dict[str, Any]]:
    """Every object as Kubernetes' own schemas know it: a pod of Ray's, whose kind they do not know, as a Pod."""
    for item in OBJECTS:
        if item["kind"] != "RayCluster":
            yield item
            continue
        for group in (item["spec"]["headGroupSpec"], *item["spec"]["workerGroupSpecs"]):
            yield {"apiVersion": "v1", "kind": "Pod", **group["template"]}
    rendered = json.dumps(POOL["job_configuration"]["job_manifest"])
    for name, value in {"labels": "{}", "command": "[]", "finished_job_ttl": "60"}.items():
        rendered = rendered.replace(f'"{{{{ {name} }}}}"', value)
    yield json.loads(rendered)


@pytest.mark.parametrize(
    "item", list(objects()), ids=lambda item: f"{item['kind']} {item.get('metadata', {}).get('name')}"
)
def test_kubernetes_takes_it(item: dict[str, Any]) -> None:
    kubernetes_validate.validate(item, "1.34", strict=True)


def test_kubernetes_names_only_what_there_is() -> None:
    for name, pod in pods():
        volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
        for volume in volumes.values():
            if claim := volume.get("persistentVolumeClaim"):
                assert claim["claimName"] in named("PersistentVolumeClaim"), name
        for container in pod["containers"]:
            assert {mount["name"] for mount in container.get("volumeMounts", [])} <= set(volumes), name
            ports = {port["name"] for port in container.get("ports", [])}
            for node in walk(container):
                for probe in ("httpGet", "tcpSocket"):
                    assert probe not in node or node[probe]["port"] in ports, name
                if ref := node.get("secretKeyRef"):
                    assert ref["key"] in SECRETS[ref["name"]], ref
                if ref := node.get("secretRef"):
                    assert ref["name"] in SECRETS, ref
                if ref := node.get("configMapRef"):
                    assert ref["name"] in named("ConfigMap"), ref
    (ray,) = (item for item in OBJECTS if item["kind"] == "RayCluster")
    assert ray["spec"]["authOptions"] == {"mode": "token", "secretName": "ray"}
    assert ray["spec"]["rayVersion"] == version("ray")
    docs = (ROOT / "docs/cluster.md").read_text()
    for secret, keys in SECRETS.items():
        (line,) = re.findall(rf"^ *kubectl create secret generic {secret} ((?:.*\\\n)*.*)", docs, re.M)
        assert {key for key in keys if f"={key}=" in line} == keys, secret


def test_kubernetes_holds_no_secret_and_runs_nothing_as_root() -> None:
    assert not named("Secret")
    for node in walk([*OBJECTS, POOL]):
        if re.search("PASSWORD$|TOKEN$|AUTH_STRING$|ACCESS_KEY$", str(node.get("name"))):
            assert "valueFrom" in node, node
    for name, pod in pods():
        assert pod["securityContext"]["runAsNonRoot"], name
        assert name == "prefect-worker" or pod["automountServiceAccountToken"] is False
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False, name
            assert {"cpu", "memory"} <= set(container["resources"]["requests"]), name
            assert container["image"] == "{{ image }}" or re.search(r":\d+\.\d+\.\d+", container["image"]), name
    assert all(item["spec"].get("type", "ClusterIP") == "ClusterIP" for item in OBJECTS if item["kind"] == "Service")


def test_what_is_not_named_reaches_nothing() -> None:
    policies = {item["metadata"]["name"]: item["spec"] for item in OBJECTS if item["kind"] == "NetworkPolicy"}
    assert policies["closed"] == {"podSelector": {}, "policyTypes": ["Ingress"]}
    services = {s["metadata"]["name"]: s["spec"]["ports"][0]["port"] for s in OBJECTS if s["kind"] == "Service"}
    for name, port in services.items():
        assert [p["port"] for rule in policies[name]["ingress"] for p in rule["ports"]] == [port]


def test_prefect_takes_the_job_template() -> None:
    from prefect.utilities.templating import find_placeholders

    used = {p.name for p in find_placeholders(json.dumps(POOL["job_configuration"]))}
    assert used == set(POOL["variables"]["properties"])


@pytest.mark.parametrize("program", ["mlflow server", "prefect server start", "prefect worker start", "ray start"])
def test_the_programs_know_their_options(program: str) -> None:
    words = program.split()
    used = [c for c in commands() if c[: len(words)] == words]
    assert used
    said = subprocess.run(
        [str(Path(sys.executable).parent / words[0]), *words[1:], "--help"], capture_output=True, text=True, check=True
    ).stdout
    for option in {word.split("=")[0] for command in used for word in command if word.startswith("--")}:
        assert re.search(rf"{option}\b", said) or re.search(rf"{option[:24]}", said), option


def test_prefect_knows_its_variables() -> None:
    from prefect.settings import Settings

    known = set(json.dumps(Settings.model_json_schema()).split('"'))
    maps = [item["data"] for item in OBJECTS if item["kind"] == "ConfigMap"]
    for name in {n for s in SERVICES.values() for n in s.get("environment", {})} | {n for m in maps for n in m}:
        if name.startswith("PREFECT_"):
            assert name in known or name == "PREFECT_DB_PASSWORD", name


def test_a_ray_of_our_own_asks_for_its_token() -> None:
    """It listens on every interface: whoever reached it without a token would run code here."""
    script = (
        "import os, subprocess, sys, ray\n"
        "from dpgan.cluster import start_ray\n"
        "start_ray(1)\n"
        "ask = 'import sys; from ray._raylet import GcsClient; GcsClient(address=sys.argv[1])'\n"
        "address = ray.get_runtime_context().gcs_address\n"
        "done = subprocess.run([sys.executable, '-c', ask, address], env=os.environ | {'RAY_AUTH_MODE': 'disabled'},\n"
        "                      capture_output=True, text=True)\n"
        "assert done.returncode and 'InvalidAuthToken' in done.stderr, done.stderr\n"
        "print('refused')\n"
    )
    env = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "RAY_AUTH_MODE")} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=False)
    assert "refused" in done.stdout, done.stderr


def test_a_ray_of_our_own_without_a_token_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(UserError, match="RAY_AUTH_MODE=disabled: Ray listens on every interface"):
        start_ray(1)
