"""The benchmark's script against a stand-in for kubectl, and the benchmark between two processes as two hosts."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from benchmarks.between_hosts import judge, parser
from tests.servers import ROOT

SCRIPT = ROOT / "deploy" / "bench" / "bench.py"

KUBECTL = """#!{python}
import json, os, sys
arguments = [each for each in sys.argv[1:]]
answers = json.load(open(os.environ["ANSWERS"]))
with open(os.environ["ASKED"], "a") as file:
    file.write(json.dumps([arguments, "" if "-" not in arguments else sys.stdin.read()]) + "\\n")
asked = " ".join(arguments)
for key, (status, text) in answers.items():
    if key in asked:
        print(text, end="", file=sys.stderr if status else sys.stdout)
        sys.exit(status)
"""


def node(name: str, **resources: str) -> dict[str, Any]:
    status = {"conditions": [{"type": "Ready", "status": "True"}], "allocatable": resources}
    return {"metadata": {"name": name}, "status": status}


def nodes(*items: dict[str, Any]) -> list[Any]:
    return [0, json.dumps({"items": items})]


GOOD: dict[str, list[Any]] = {
    "/readyz": [0, "ok"],
    "get namespace": [0, ""],
    "can-i": [0, "yes"],
    "get nodes": nodes(node("a"), node("b")),
}


class Cluster:
    """A folder with a ``kubectl`` that answers as it is told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = folder / "kubectl"
        path.write_text(KUBECTL.format(python=sys.executable))
        path.chmod(path.stat().st_mode | stat.S_IEXEC)

    def run(self, answers: dict[str, list[Any]], *arguments: str) -> subprocess.CompletedProcess[str]:
        (self.folder / "answers").write_text(json.dumps(answers))
        environment = os.environ | {
            "PATH": str(self.folder),
            "ANSWERS": str(self.folder / "answers"),
            "ASKED": str(self.folder / "asked"),
        }
        command = [sys.executable, str(SCRIPT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)

    @property
    def asked(self) -> list[Any]:
        return [json.loads(line) for line in (self.folder / "asked").read_text().splitlines()]


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


def test_a_good_cluster(cluster: Cluster) -> None:
    done = cluster.run(GOOD, "check", "--image", "registry/triptych:cpu")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("broken", "arguments", "says"),
    [
        ({"/readyz": [1, "refused"]}, [], "current-context"),
        ({"get namespace": [1, "not found"]}, [], "kubectl create namespace triptych"),
        ({"can-i": [1, "no"]}, [], "ask for a role"),
        ({"get nodes": nodes(node("a"))}, [], "two are needed"),
        ({}, ["--gpu"], "GPU operator"),
        ({"get nodes": nodes(node("a", **{"rdma/hca": "4"}), node("b"))}, ["--rdma", "rdma/hca"], "those that do: a"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_applied(
    broken: dict[str, list[Any]], arguments: list[str], says: str, cluster: Cluster
) -> None:
    done = cluster.run({**GOOD, **broken}, "deploy", *arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert not any("apply" in arguments for arguments, _ in cluster.asked)


def test_no_kubectl(cluster: Cluster) -> None:
    (cluster.folder / "kubectl").unlink()
    done = cluster.run(GOOD, "check")
    assert done.returncode == 2
    assert "kubectl is not installed" in done.stderr


def test_what_is_applied(cluster: Cluster) -> None:
    gpus = nodes(*(node(name, **{"nvidia.com/gpu": "8", "rdma/hca": "4"}) for name in "ab"))
    done = cluster.run(
        {**GOOD, "get nodes": gpus},
        "deploy", "--image", "r/triptych:cpu", "--gpu", "--rdma", "rdma/hca", "--min-read", "20",
        "--ucx-tls", "rc,cuda,tcp",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (text,) = [stdin for arguments, stdin in cluster.asked if "apply" in arguments]
    manifests = list(yaml.safe_load_all(text))
    for manifest in manifests:
        kubernetes_validate.validate(manifest, "1.37", strict=True)
    (job,) = (each for each in manifests if each["kind"] == "Job")
    spec = job["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert container["image"] == "r/triptych:cpu"
    assert container["resources"]["limits"].items() >= {"nvidia.com/gpu": "1", "rdma/hca": "1"}.items()
    program, _, module, *arguments = container["command"]
    assert (program, module) == ("python", "benchmarks.between_hosts")
    options, rest = parser().parse_known_args(arguments)
    assert (options.part, options.host, options.min_read) == ("indexed", "triptych-transfer", 20.0)
    assert rest[:2] == ["--pairs", "cuda:0,cuda:0"]
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == 2
    assert spec["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]


ROWS = [
    {"what": "ours", "kind": kind, "size": size, "buffers": 1, "in_flight": 1, "p50_us": us, "GB_per_s": speed}
    for kind, size, us, speed in
    (("read", 65536, 50.0, 1.3), ("read", 1 << 26, 6000.0, 11.0), ("write", 1 << 26, 5e3, 13))
]  # fmt: skip


@pytest.mark.parametrize(
    ("limits", "problems"),
    [
        ([], 0),
        (["--min-read", "10", "--min-write", "12", "--max-small", "60"], 0),
        (["--min-read", "12"], 1),
        (["--min-write", "14"], 1),
        (["--max-small", "40", "--min-read", "12"], 2),
    ],
)
def test_limits(limits: list[str], problems: int) -> None:
    options = parser().parse_args(["measure", "host", *limits])
    assert len(judge(ROWS, options)) == problems


@pytest.mark.parametrize("passed", [True, False])
def test_results(passed: bool, cluster: Cluster, tmp_path: Path) -> None:
    result = {"passed": passed, "problems": [] if passed else ["too slow"], "rows": ROWS}
    answers = {
        "get job": [0, json.dumps({"status": {"conditions": [{"type": "Complete", "status": "True"}]}})],
        "logs": [0, f"some line\nRESULT {json.dumps(result)}\n"],
    }
    done = cluster.run(answers, "results", "--json", str(tmp_path / "out.json"))
    assert done.returncode == (0 if passed else 1), done.stderr
    assert json.loads((tmp_path / "out.json").read_text()) == result
    assert ("FAIL too slow" in done.stdout) is not passed


def test_results_that_are_not_there(cluster: Cluster) -> None:
    running = {"get job": [0, json.dumps({"status": {}})]}
    done = cluster.run(running, "results", "--timeout", "0")
    assert done.returncode == 2
    assert "`status` says" in done.stderr
    failed = {"get job": [0, json.dumps({"status": {"conditions": [{"type": "Failed", "status": "True"}]}})]}
    done = cluster.run({**failed, "logs": [0, "Traceback\n"]}, "results")
    assert done.returncode == 2
    assert "Traceback" in done.stderr


def test_a_pod_that_cannot_start(cluster: Cluster) -> None:
    waiting = {"image": "triptych:cpu", "state": {"waiting": {"reason": "ImagePullBackOff"}}}
    pods = {"items": [{"metadata": {"name": "p"}, "status": {"containerStatuses": [waiting]}}]}
    done = cluster.run({"-o json": [0, json.dumps(pods)]}, "status")
    assert "p: ImagePullBackOff: push triptych:cpu to a registry" in done.stdout


def test_two_hosts(tmp_path: Path) -> None:
    """Two processes, as if on two hosts: the bytes are checked, limits hold or not, and the numbers are written."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "hosts", "--launch", "env NODE={node}", "--max-bytes", "300000", "--min-read",
         "1e6", "--json", str(tmp_path / "out.json"), "127.0.0.1=a", "127.0.0.1=b"],
        capture_output=True, text=True, cwd=ROOT, timeout=300,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1000000.0 wanted" in done.stdout
    result = json.loads((tmp_path / "out.json").read_text())
    assert {row["kind"] for row in result["rows"] if row["what"] == "ours"} == {"read", "write"}
