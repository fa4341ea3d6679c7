"""What can be said of the container files without a container: `make test-compose` runs them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import prometheus_client.parser
import pytest
import yaml

import frontend.metrics  # noqa: F401  # declares them
from components.config.topology import REPOSITORY
from components.telemetry.metrics import render

BIN = Path(sys.executable).parent
COMPOSE = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())
WORKERS = ("encode", "prefill", "decode")


def tool(name: str) -> str:
    """Some have no package for this kind of machine; CI's has all of them."""
    return shutil.which(name, path=f"{BIN}:{os.environ['PATH']}") or pytest.skip(f"{name} is not installed")


def check(*command: str | Path) -> str:
    done = subprocess.run([str(part) for part in command], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_dockerfile() -> None:
    check(tool("hadolint"), "--failure-threshold", "info", "container/Dockerfile")


def test_shell_scripts() -> None:
    check(tool("shellcheck"), *sorted((REPOSITORY / "container").glob("*.sh")))


def test_install_nixl_refuses_what_it_cannot_do() -> None:
    script = REPOSITORY / "container/install_nixl.sh"
    for arguments, environment in (
        (["--only"], {}),
        (["nonsense"], {}),
        ([], {"WITH_CUDA": "maybe"}),
        ([], {"WITH_CUDA": "yes", "CUDA_HOME": "/nowhere"}),
    ):
        done = subprocess.run([script, *arguments], env={**os.environ, **environment}, capture_output=True, text=True)
        assert done.returncode == 1, arguments
        assert "install_nixl.sh: " in done.stderr


def _config(profile: str, *overlays: str, **knobs: str) -> dict[str, Any]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COMPOSE_")} | knobs
    files = [part for file in ("docker-compose.yml", *overlays) for part in ("-f", file)]
    command = [tool("docker-compose"), *files, "--profile", profile, "config", "--format", "json"]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # Compose says "variable is not set" and goes on with an empty one.
    assert "not set" not in done.stderr, done.stderr
    parsed: dict[str, Any] = json.loads(done.stdout)
    return parsed


@pytest.mark.parametrize("profile", ["cpu", "sglang", "trtllm", "observability"])
def test_compose_resolves_each_profile(profile: str) -> None:
    services = _config(profile)["services"]
    if profile != "observability":
        suffix = "" if profile == "cpu" else f"-{profile}"
        assert {f"{role}{suffix}" for role in WORKERS} | {"frontend", "processor"} <= services.keys()
        for name in services.keys() - {"nats", "etcd", "lanes"}:
            assert services[name]["pid"] == services[name]["ipc"] == "service:lanes"
            assert services[name]["cap_add"] == ["SYS_PTRACE"]
    for name, service in services.items():
        assert service["restart"] == "unless-stopped", name


@pytest.mark.parametrize("engine", ["sglang", "trtllm"])
def test_rdma_is_an_overlay_of_gpu_workers(engine: str) -> None:
    services = _config(engine, "container/rdma.yml")["services"]
    for name in ("frontend", *(f"{role}-{engine}" for role in WORKERS)):
        assert services[name]["network_mode"] == "host", name
        assert not services[name].get("networks") and not services[name].get("ports"), name
        assert services[name]["environment"]["TRIPTYCH_NATS__SERVERS"] == "nats://127.0.0.1:4222", name
        assert services[name]["pid"] == "service:lanes", name
    for role in WORKERS:
        assert services[f"{role}-{engine}"]["ulimits"]["memlock"], role
        assert services[f"{role}-{engine}"]["devices"], role


def test_knobs_that_a_restricted_host_needs() -> None:
    services = _config("sglang", NAMESPACES="host", MEMLOCK="65536", UCX_TLS="tcp")["services"]
    for role in WORKERS:
        service = services[f"{role}-sglang"]
        assert (service["pid"], service["ipc"]) == ("host", "host")
        assert service["ulimits"]["memlock"] == 65536
        assert service["environment"]["TRIPTYCH_TRANSFER__UCX_TLS"] == "tcp"


def test_every_knob_is_explained_and_used() -> None:
    used = set(re.findall(r"\$\{(\w+)\}", (REPOSITORY / "docker-compose.yml").read_text()))
    explained = set()
    comment = False
    for line in (REPOSITORY / ".env").read_text().splitlines():
        if match := re.match(r"(\w+)=", line):
            # One comment may stand over several knobs that belong together.
            assert comment, f"{match[1]} is not explained"
            explained.add(match[1])
        else:
            comment = line.startswith("#")
    assert explained - {"COMPOSE_PROFILES"} == used


def test_every_service_of_a_role_has_a_health_check_that_asks_it() -> None:
    for name, service in COMPOSE["services"].items():
        role = name.split("-")[0]
        if role in (*WORKERS, "processor"):
            assert service["command"][:2] == ["run", role], name
            assert service["healthcheck"]["test"] == ["CMD", "triptych", "status", role, "--here"], name


def test_the_dashboard_shows_metrics_that_exist() -> None:
    ours = {family.name for family in prometheus_client.parser.text_string_to_metric_families(render().decode())}
    dashboard = json.loads((REPOSITORY / "deploy/observability/triptych.json").read_text())
    shown = set()
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            shown |= set(re.findall(r"\btriptych_\w+", target["expr"]))
    assert shown
    for name in shown:
        assert re.sub(r"_(total|bucket)$", "", name) in ours, name
