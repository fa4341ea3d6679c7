#!/usr/bin/env python3
"""The transfer benchmark as a deployment: what the network of a cluster, or between two hosts, gives NIXL.

    deploy/bench/bench.py check    --image REGISTRY/triptych:cpu [--gpu] [--rdma rdma/hca]
    deploy/bench/bench.py generate …            the manifests on standard output
    deploy/bench/bench.py deploy …              check, then apply
    deploy/bench/bench.py status | results [--json F] | clean
    deploy/bench/bench.py hosts --launch "ssh {node}" ADDRESS=NODE ADDRESS=NODE

Asks nothing on the terminal. Exit status: 0 well, 1 a limit of the benchmark does not hold, 2 it could not run (the
message says what to do). Needs kubectl and PyYAML on this machine; the image needs nothing beyond Triptych.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

TEMPLATE = Path(__file__).with_name("job.yaml")
RESULT = "RESULT "
JOB = "triptych-transfer"
_KUBECTL_SECONDS = 60
_HOSTS_SECONDS = 1800
_PAUSE = 2.0


class Unusable(Exception):
    """It cannot run; the message says why and what to do."""


def kubectl(options: argparse.Namespace, *arguments: str, stdin: str | None = None, namespaced: bool = True) -> str:
    command = ["kubectl", *(["-n", options.namespace] if namespaced else []), *arguments]
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=_KUBECTL_SECONDS)
    except subprocess.TimeoutExpired:
        raise Unusable(f"`{shlex.join(command)}` does not answer: is the cluster in reach?") from None
    if done.returncode != 0:
        raise Unusable(f"`{shlex.join(command)}`: {done.stderr.strip()}")
    return done.stdout


# what must be so before anything is applied


def check(options: argparse.Namespace) -> None:
    """Raises ``Unusable`` with the first thing that is not as it must be."""
    if shutil.which("kubectl") is None:
        raise Unusable("kubectl is not installed: https://kubernetes.io/docs/tasks/tools/")
    _must(
        options,
        ["get", "--raw", "/readyz"],
        "the cluster does not answer: look at `kubectl config current-context`, and whether you are signed in",
    )
    _must(options, ["get", "namespace", options.namespace], f"make it: `kubectl create namespace {options.namespace}`")
    for verb, what in (("create", "jobs.batch"), ("create", "services"), ("get", "pods/log")):
        otherwise = f"you may not {verb} {what} in {options.namespace}: ask for a role that may"
        _must(options, ["auth", "can-i", verb, what, "-n", options.namespace], otherwise)
    nodes = json.loads(kubectl(options, "get", "nodes", "-o", "json", namespaced=False))["items"]
    ready = [node for node in nodes if _is_ready(node)]
    if len(ready) < 2:
        raise Unusable(f"{len(ready)} node is ready and two are needed: the pods must be on different ones")
    for resource in _resources(options):
        having = [node["metadata"]["name"] for node in ready if int(node["status"]["allocatable"].get(resource, "0"))]
        if len(having) < 2:
            offer = "Install NVIDIA's GPU operator."
            if "gpu" not in resource:
                offer = (
                    "Install an RDMA device plugin, or give the name that yours uses: `kubectl describe node`, --rdma."
                )
            raise Unusable(f"two nodes must offer {resource}; those that do: {', '.join(having) or 'none'}. {offer}")
    if "/" not in options.image:
        print(f"note: {options.image} names no registry; every node must have it already", file=sys.stderr)


def _must(options: argparse.Namespace, question: Sequence[str], otherwise: str) -> None:
    try:
        kubectl(options, *question, namespaced=False)
    except Unusable as error:
        raise Unusable(f"{error}\n{otherwise}") from error


def _is_ready(node: dict[str, Any]) -> bool:
    return any(each["type"] == "Ready" and each["status"] == "True" for each in node["status"]["conditions"])


def _resources(options: argparse.Namespace) -> list[str]:
    return [*(["nvidia.com/gpu"] if options.gpu else []), *([options.rdma] if options.rdma else [])]


# the manifests


def generate(options: argparse.Namespace) -> str:
    """A headless Service and an indexed Job of two pods on two nodes."""
    manifests: list[dict[str, Any]] = list(yaml.safe_load_all(TEMPLATE.read_text(encoding="utf-8")))
    pod = next(each for each in manifests if each["kind"] == "Job")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    container["image"] = options.image
    container["command"] += _arguments(options)
    container["env"].append({"name": "UCX_TLS", "value": options.ucx_tls})
    for resource in _resources(options):
        container["resources"].setdefault("limits", {})[resource] = "1"
    if options.rdma:
        container["securityContext"]["capabilities"]["add"] = ["IPC_LOCK"]
    return yaml.safe_dump_all(manifests, sort_keys=False)


def _arguments(options: argparse.Namespace) -> list[str]:
    """For ``benchmarks.between_hosts``."""
    device = "cuda:0" if options.gpu else "cpu"
    found = ["--pairs", f"{device},{device}", "--max-bytes", str(options.max_bytes)]
    for name in ("min_read", "min_write", "max_small"):
        value = getattr(options, name)
        if value is not None:
            found += [f"--{name.replace('_', '-')}", str(value)]
    return found


def deploy(options: argparse.Namespace) -> int:
    check(options)
    # A Job cannot be changed: one from an earlier run goes first.
    kubectl(options, "delete", "job", JOB, "--ignore-not-found", "--wait=true")
    print(kubectl(options, "apply", "-f", "-", stdin=generate(options)), end="")
    return 0


def status(options: argparse.Namespace) -> int:
    print(kubectl(options, "get", "job,pods", "-l", f"app={JOB}", "-o", "wide"), end="")
    pods = json.loads(kubectl(options, "get", "pods", "-l", f"app={JOB}", "-o", "json"))["items"]
    for pod in pods:
        for reason in _stuck(pod):
            print(f"{pod['metadata']['name']}: {reason}")
    return 0


def _stuck(pod: dict[str, Any]) -> list[str]:
    """Why a pod does not run, and what to do."""
    found = [
        f"cannot be placed: {each.get('message', '')}; see `kubectl describe pod {pod['metadata']['name']}`"
        for each in pod["status"].get("conditions", [])
        if each["type"] == "PodScheduled" and each["status"] == "False"
    ]
    for each in pod["status"].get("containerStatuses", []):
        waiting = each.get("state", {}).get("waiting", {})
        if waiting.get("reason") in ("ErrImagePull", "ImagePullBackOff", "InvalidImageName"):
            found.append(f"{waiting['reason']}: push {each['image']} to a registry that the nodes reach (--image)")
    return found


def results(options: argparse.Namespace) -> int:
    """Waits for the Job's end, writes its numbers, and says whether it passed."""
    deadline = time.monotonic() + options.timeout
    while not _ended(json.loads(kubectl(options, "get", "job", JOB, "-o", "json"))):
        if time.monotonic() > deadline:
            raise Unusable(f"the job has not ended after {options.timeout:g} s; `status` says what it does")
        time.sleep(_PAUSE)
    selector = f"app={JOB},batch.kubernetes.io/job-completion-index=1"
    return _report(kubectl(options, "logs", "-l", selector, "--tail=-1"), options.json)


def _ended(job: dict[str, Any]) -> bool:
    conditions = job["status"].get("conditions", [])
    return any(each["type"] in ("Complete", "Failed") and each["status"] == "True" for each in conditions)


def _report(log: str, file: Path | None) -> int:
    lines = [line[len(RESULT) :] for line in log.splitlines() if line.startswith(RESULT)]
    if not lines:
        raise Unusable("no result in the log; its end:\n" + "\n".join(log.splitlines()[-20:]))
    result: dict[str, Any] = json.loads(lines[-1])
    if file is not None:
        file.write_text(json.dumps(result, indent=1), encoding="utf-8")
    for row in result["rows"]:
        if row["what"] == "ours":
            print(f"{row['kind']:5} {row['size']:>12,} B  {row['p50_us']:>12,.1f} us  {row['GB_per_s']:>8.2f} GB/s")
    for problem in result["problems"]:
        print(f"FAIL {problem}")
    print("passed" if result["passed"] else "not passed")
    return 0 if result["passed"] else 1


def clean(options: argparse.Namespace) -> int:
    print(kubectl(options, "delete", "job,service,networkpolicy", "-l", f"app={JOB}", "--wait=true"), end="")
    return 0


# two plain hosts


def hosts(options: argparse.Namespace) -> int:
    """The same between two hosts that ``--launch`` starts commands on."""
    if len(options.hosts) != 2 or not all("=" in each for each in options.hosts):
        raise Unusable("give two ADDRESS=NODE: where the other reaches it, and what --launch calls it")
    (address, first), (_, second) = (each.partition("=")[::2] for each in options.hosts)
    python = [shlex.quote(options.python), "-m", "benchmarks.between_hosts"]
    serving = subprocess.Popen([*_launch(options, first), *python, "serve"], stdin=subprocess.DEVNULL)
    try:
        measuring = [*_launch(options, second), *python, "measure", address, *_arguments(options)]
        done = subprocess.run(
            measuring, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, timeout=_HOSTS_SECONDS
        )
    except OSError as error:
        raise Unusable(f"{options.launch}: {error.strerror}") from error
    finally:
        serving.terminate()
        serving.wait()
    return _report(done.stdout, options.json)


def _launch(options: argparse.Namespace, node: str) -> list[str]:
    return [part.replace("{node}", node) for part in shlex.split(options.launch)]


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    made.add_argument("do", choices=["check", "generate", "deploy", "status", "results", "clean", "hosts"])
    made.add_argument("hosts", nargs="*", help="hosts: two ADDRESS=NODE")
    made.add_argument("--namespace", default="triptych")
    made.add_argument("--image", default="triptych:cpu")
    made.add_argument("--gpu", action="store_true", help="memory of one GPU a pod instead of the host's")
    made.add_argument("--rdma", help="resource of an RDMA card, such as rdma/hca")
    made.add_argument("--ucx-tls", default="all", help="UCX transports, such as tcp or rc,cuda,tcp")
    made.add_argument("--max-bytes", type=int, default=64 << 20, help="largest operation")
    made.add_argument("--min-read", type=float, help="GB/s of the largest READ; less fails")
    made.add_argument("--min-write", type=float, help="GB/s of the largest WRITE; less fails")
    made.add_argument("--max-small", type=float, help="microseconds of the smallest operation; more fails")
    made.add_argument("--json", type=Path, help="results, hosts: write the numbers there")
    made.add_argument("--timeout", type=float, default=1800.0, help="results: longest wait for the job's end, seconds")
    made.add_argument("--launch", default="ssh -o BatchMode=yes {node}", help="hosts: starts a command on {node}")
    made.add_argument("--python", default=sys.executable, help="hosts: Python with Triptych, the same path on both")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_intermixed_args(arguments)
    try:
        if options.do == "generate":
            print(generate(options), end="")
            return 0
        if options.do == "check":
            check(options)
            print("the benchmark can be deployed")
            return 0
        parts = {"deploy": deploy, "status": status, "results": results, "clean": clean, "hosts": hosts}
        return parts[options.do](options)
    except Unusable as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
