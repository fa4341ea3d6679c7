"""The manifests against Kubernetes' own schemas, strictly, and against what Triptych itself says and needs."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from typer.main import get_command

from components.cli.main import app
from components.config import load
from components.protocol import ROLES
from components.telemetry.metrics import REGISTRY
from frontend import metrics
from tests.deploy.kustomize import Manifest, render

KUBERNETES = Path(__file__).parents[2] / "deploy" / "kubernetes"
VERSION = "1.37"
OVERLAYS = ("base", "gpu")


@pytest.fixture(params=OVERLAYS)
def manifests(request: pytest.FixtureRequest) -> list[Manifest]:
    return render(KUBERNETES / request.param)


def of(manifests: list[Manifest], kind: str) -> dict[str, Manifest]:
    return {each["metadata"]["name"]: each for each in manifests if each["kind"] == kind}


def pod(workload: Manifest) -> dict[str, Any]:
    spec: dict[str, Any] = workload["spec"]["template"]["spec"]
    return spec


def container(workload: Manifest) -> dict[str, Any]:
    (only,) = pod(workload)["containers"]
    found: dict[str, Any] = only
    return found


def test_schemas(manifests: list[Manifest]) -> None:
    for manifest in manifests:
        kubernetes_validate.validate(manifest, VERSION, strict=True)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl")
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kubectl_makes_the_same_of_it(overlay: str) -> None:
    command = ["kubectl", "kustomize", str(KUBERNETES / overlay)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    # The hash of the content in a ConfigMap's name: topology-8b2t4m6c9d.
    made = list(yaml.safe_load_all(re.sub(r"\b(topology|nats)-[a-z0-9]{10}\b", r"\1", text)))

    def key(manifest: Manifest) -> tuple[str, str]:
        return manifest["kind"], manifest["metadata"]["name"]

    assert sorted(made, key=key) == sorted(render(KUBERNETES / overlay), key=key)


def test_schemas_refuse_a_slip() -> None:
    deployment = of(render(KUBERNETES / "base"), "Deployment")["decode"]
    deployment["spec"]["replica"] = 3
    with pytest.raises(kubernetes_validate.ValidationError, match="replica"):
        kubernetes_validate.validate(deployment, VERSION, strict=True)


def test_every_role_is_a_deployment_with_a_budget(manifests: list[Manifest]) -> None:
    deployments, budgets = of(manifests, "Deployment"), of(manifests, "PodDisruptionBudget")
    assert deployments.keys() == {*ROLES, "nats"}
    for role in ROLES:
        labels = deployments[role]["spec"]["template"]["metadata"]["labels"]
        assert deployments[role]["spec"]["selector"]["matchLabels"].items() <= labels.items()
        assert labels["triptych/role"] == role
        assert budgets[role]["spec"]["selector"]["matchLabels"].items() <= labels.items()
        assert container(deployments[role])["args"][:2] == ["run", role]


def test_commands_exist(manifests: list[Manifest]) -> None:
    """What pods run and ask is something that ``triptych`` understands."""
    command = get_command(app)
    deployments = of(manifests, "Deployment")
    for role in ROLES:
        spec = container(deployments[role])
        asked = [spec["args"]]
        for name in ("startupProbe", "livenessProbe", "readinessProbe"):
            if "exec" in spec.get(name, {}):
                program, *arguments = spec[name]["exec"]["command"]
                assert program == "triptych"
                assert arguments[1] == role
                asked.append(arguments)
        for name, *arguments in asked:
            command.commands[name].make_context(name, list(arguments))  # type: ignore[attr-defined]


def test_probes(manifests: list[Manifest]) -> None:
    deployments = of(manifests, "Deployment")
    frontend = container(deployments["frontend"])
    assert frontend["livenessProbe"]["httpGet"]["path"] == "/health"
    assert frontend["readinessProbe"]["httpGet"]["path"] == "/ready"
    for role in ROLES:
        spec = container(deployments[role])
        assert {"startupProbe", "livenessProbe"} <= spec.keys()
        # Whoever restarts workers because NATS does loses every running request.
        if role != "frontend":
            assert spec["livenessProbe"]["periodSeconds"] * spec["livenessProbe"]["failureThreshold"] >= 300


def test_topology(manifests: list[Manifest], tmp_path: Path) -> None:
    path = tmp_path / "topology.yaml"
    path.write_text(of(manifests, "ConfigMap")["topology"]["data"]["topology.yaml"])
    topology = load(path, environ={})
    services = of(manifests, "Service")
    for address in (*topology.nats.servers, *topology.etcd.endpoints):
        host, _, port = address.removeprefix("nats://").partition(":")
        assert int(port) in [each["port"] for each in services[host]["spec"]["ports"]]
    assert topology.frontend.host == "0.0.0.0"
    for role in ROLES:
        grace = pod(of(manifests, "Deployment")[role])["terminationGracePeriodSeconds"]
        assert grace > topology.drain_seconds + 2


def test_references(manifests: list[Manifest]) -> None:
    """Volumes that are mounted are there; Services, budgets, policies and scalers select or name something."""
    deployments = of(manifests, "Deployment")
    workloads = {**deployments, **of(manifests, "StatefulSet")}
    for workload in workloads.values():
        declared = {each["name"] for each in pod(workload).get("volumes", [])}
        declared |= {each["metadata"]["name"] for each in workload["spec"].get("volumeClaimTemplates", [])}
        assert {each["name"] for each in container(workload).get("volumeMounts", [])} <= declared
    labels = [workload["spec"]["template"]["metadata"]["labels"] for workload in workloads.values()]
    for service in of(manifests, "Service").values():
        assert any(service["spec"]["selector"].items() <= each.items() for each in labels)
    for scaler in of(manifests, "HorizontalPodAutoscaler").values():
        assert scaler["spec"]["scaleTargetRef"]["name"] in deployments
    for policy in of(manifests, "NetworkPolicy").values():
        assert any(_selects(policy["spec"]["podSelector"], each) for each in labels), policy["metadata"]["name"]


def _selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    for each in selector.get("matchExpressions", []):
        value = labels.get(each["key"])
        if value is None or (each["operator"] == "In" and value not in each["values"]):
            return False
    return bool(selector.get("matchLabels", {}).items() <= labels.items())


def allowed(manifests: list[Manifest], source: str, target: str, port: int) -> bool:
    """Whether the policies let ``source`` reach ``target``: both sides must say yes once any policy selects them."""
    workloads = {**of(manifests, "Deployment"), **of(manifests, "StatefulSet")}
    labels = {name: each["spec"]["template"]["metadata"]["labels"] for name, each in workloads.items()}
    policies = [each["spec"] for each in of(manifests, "NetworkPolicy").values()]

    def says_yes(direction: str, peers: str, mine: str, other: str) -> bool:
        for policy in policies:
            if direction.capitalize() not in policy["policyTypes"] or not _selects(policy["podSelector"], labels[mine]):
                continue
            for rule in policy.get(direction, []):
                ports = any(each["port"] <= port <= each.get("endPort", each["port"]) for each in rule["ports"])
                named = [each["podSelector"] for each in rule.get(peers, []) if "podSelector" in each]
                if ports and (peers not in rule or any(_selects(each, labels[other]) for each in named)):
                    return True
        return False

    return says_yes("egress", "to", source, target) and says_yes("ingress", "from", target, source)


def test_network(manifests: list[Manifest]) -> None:
    for role in ROLES:
        assert allowed(manifests, role, "nats", 4222)
        assert allowed(manifests, role, "etcd", 2379)
        assert not allowed(manifests, role, "nats", 8222)
        for other in ROLES:
            assert allowed(manifests, role, other, 20000) and allowed(manifests, role, other, 20999)
            assert not allowed(manifests, role, other, 21000)
    assert not allowed(manifests, "nats", "etcd", 2379)
    ports = {
        each["value"]
        for role in ROLES
        for each in container(of(manifests, "Deployment")[role])["env"]
        if each["name"] == "UCX_TCP_PORT_RANGE"
    }
    assert ports == {"20000-20999"}


def test_scalers_ask_for_metrics_that_exist(manifests: list[Manifest]) -> None:
    assert metrics.IN_FLIGHT
    published = {metric.name for metric in REGISTRY.collect()}
    adapter = yaml.safe_load((KUBERNETES / "prometheus-adapter.yaml").read_text())
    made = {rule["name"]["as"] for rule in adapter["rules"]["external"]}
    for scaler in of(manifests, "HorizontalPodAutoscaler").values():
        for metric in scaler["spec"]["metrics"]:
            if metric["type"] == "External":
                name = metric["external"]["metric"]["name"]
                assert name in published
                assert name in made
    for rule in adapter["rules"]["external"]:
        assert rule["seriesQuery"].partition("{")[0] in published


def test_locked_down(manifests: list[Manifest]) -> None:
    for workload in (*of(manifests, "Deployment").values(), *of(manifests, "StatefulSet").values()):
        context = container(workload)["securityContext"]
        assert pod(workload)["securityContext"]["runAsNonRoot"]
        assert pod(workload)["automountServiceAccountToken"] is False
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"]["drop"] == ["ALL"]
        assert "memory" in container(workload)["resources"]["limits"]


def test_gpus_and_rdma() -> None:
    deployments = of(render(KUBERNETES / "gpu"), "Deployment")
    for role in ("encode", "prefill", "decode"):
        spec = container(deployments[role])
        assert spec["resources"]["limits"].items() >= {"nvidia.com/gpu": "1", "rdma/hca": "1"}.items()
        assert spec["securityContext"]["capabilities"]["add"] == ["IPC_LOCK"]
        variables = {each["name"]: each["value"] for each in spec["env"]}
        assert variables["UCX_TLS"].split(",")[-1] == "tcp"
        assert "/models" in {each["mountPath"] for each in spec["volumeMounts"]}
    assert "nvidia.com/gpu" not in container(deployments["processor"])["resources"]["limits"]
