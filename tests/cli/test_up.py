"""``triptych up``: starts everything, keeps it, drains it, and leaves no process behind whatever happens."""

from __future__ import annotations

import http.server
import os
import shutil
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from components.config.topology import REPOSITORY
from components.runtime.servers import free_port
from tests.cli.conftest import Start
from tests.cli.stack import Stack, ports, wait_until


class _NoModels(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def hub_without_models() -> Iterator[str]:
    """A hub that knows no model, as Hugging Face's answers for one; its address for ``HF_ENDPOINT``."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _NoModels) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def drained(stack: Stack) -> list[str]:
    return [line.split("-0")[0] for line in stack.lines if line.endswith("| drained")]


def test_sigterm_drains_the_frontend_first_and_leaves_nothing(start: Start, folder: Path) -> None:
    stack = start("up", "-v", *ports())
    stack.wait_for("answers for model")
    assert len(stack.processes()) == 8  # triptych, nats-server, etcd, five roles
    stack.send(signal.SIGTERM)
    assert stack.end() == 0
    stack.gone()
    assert drained(stack)[0] == "frontend"
    assert sorted(drained(stack)[1:]) == ["decode", "encode", "prefill", "processor"]
    assert [path.name for path in (folder / ".triptych").iterdir()] == ["logs"]


def test_ctrl_c_while_starting(start: Start) -> None:
    stack = start("up", *ports())
    wait_until(lambda: len(stack.processes()) >= 4, "some processes")
    stack.send(signal.SIGINT)
    assert stack.end() == 1
    stack.gone()


def test_kill_9_of_the_supervisor_leaves_nothing(start: Start) -> None:
    stack = start("up", *ports())
    stack.wait_for("answers for model")
    stack.send(signal.SIGKILL)
    stack.end()
    stack.gone()


def test_a_second_ctrl_c_ends_at_once(start: Start, folder: Path) -> None:
    (folder / "hang-decode").touch()
    stack = start("up", "-v", *ports())
    stack.wait_for("answers for model")
    stack.send(signal.SIGINT)
    stack.wait_for("hanging")
    stack.send(signal.SIGINT)
    assert stack.end(5.0) == 0
    assert "ended at once" in stack.output
    stack.gone()


def test_a_role_that_does_not_drain_in_time_is_killed(start: Start, folder: Path) -> None:
    (folder / "hang-processor").touch()
    stack = start("up", "--set", "drain_seconds=0.5", *ports())
    stack.wait_for("answers for model")
    stack.send(signal.SIGTERM)
    assert stack.end() == 0
    assert "processor-0: not done after" in stack.output
    stack.gone()


def test_a_role_that_dies_is_started_again(start: Start) -> None:
    stack = start("up", *ports())
    stack.wait_for("answers for model")
    before = stack.find("--id decode-0")
    os.kill(before, signal.SIGKILL)
    stack.wait_for("decode-0: ended with SIGKILL, starts again in 0.5 s")
    stack.wait_for("decode-0: ready", times=2)
    assert stack.find("--id decode-0") != before


def test_a_role_that_keeps_dying_is_started_more_and_more_rarely(start: Start, folder: Path) -> None:
    stack = start("up", *ports())
    stack.wait_for("answers for model")
    (folder / "fail-encode").touch()
    os.kill(stack.find("--id encode-0"), signal.SIGKILL)
    stack.wait_for("encode-0: ended with SIGKILL, starts again in 0.5 s")
    stack.wait_for("encode-0: ended with status 1, starts again in 1 s")
    stack.wait_for("RuntimeError: encode has no weights")
    (folder / "fail-encode").unlink()
    stack.wait_for("encode-0: ready", times=2)


WELL_AT_ONCE = "from components.runtime import restarts; restarts.WELL_SECONDS = 0.0"


def test_a_role_that_had_been_well_is_started_again_at_once_however_often(start: Start) -> None:
    stack = start("up", *ports(), before=WELL_AT_ONCE)
    stack.wait_for("answers for model")
    for times in range(1, 4):
        os.kill(stack.find("--id decode-0"), signal.SIGKILL)
        stack.wait_for("decode-0: ended with SIGKILL, starts again at once", times=times)
        stack.wait_for("decode-0: ready", times=times + 1)


def test_a_server_that_had_been_well_is_started_again_at_once(start: Start) -> None:
    stack = start("up", *ports(), before=WELL_AT_ONCE)
    stack.wait_for("answers for model")
    os.kill(stack.find("bin/nats-server "), signal.SIGKILL)
    stack.wait_for("nats-server: ended, starts again at once")


BROKEN_KEEPER = """
from components.cli import supervisor
def broken(status): raise OverflowError("a status of 100 bits")
supervisor.describe_end = broken
"""


def test_a_keeper_that_fails_ends_the_stack_with_its_cause(start: Start) -> None:
    stack = start("up", *ports(), before=BROKEN_KEEPER)
    stack.wait_for("answers for model")
    os.kill(stack.find("--id decode-0"), signal.SIGKILL)
    assert stack.end() == 70
    assert "the keeper of decode-0 ended unexpectedly: OverflowError: a status of 100 bits" in stack.output
    assert "the keeper of decode-0 ended unexpectedly: the stack ends" in stack.lines
    assert stack.lines[-1] == "stopped"
    stack.gone()


FULL_MACHINE = """
import errno
from components.cli.child import Child
start, starts = Child.start, []
async def full(*arguments):
    starts.append(arguments)
    if len(starts) == 6:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
    return await start(*arguments)
Child.start = full
"""


def test_a_role_that_the_machine_cannot_hold_for_a_moment_is_tried_again(start: Start) -> None:
    stack = start("up", *ports(), before=FULL_MACHINE)
    stack.wait_for("answers for model")
    os.kill(stack.find("--id decode-0"), signal.SIGKILL)
    stack.wait_for("decode-0 cannot be started: Resource temporarily unavailable")
    stack.wait_for("decode-0: ready", times=2)


@pytest.mark.parametrize("server", ["nats-server", "etcd"])
def test_an_embedded_server_that_dies_is_started_again(start: Start, server: str) -> None:
    stack = start("up", *ports())
    stack.wait_for("answers for model")
    before = stack.find(f"bin/{server} ")
    os.kill(before, signal.SIGKILL)
    stack.wait_for(f"{server}: ended, starts again")
    stack.wait_for(f"{server}: ready", times=2)
    assert stack.find(f"bin/{server} ") != before


def test_a_role_that_cannot_start_stops_everything_and_says_why(start: Start, folder: Path) -> None:
    (folder / "fail-prefill").touch()
    stack = start("up", *ports())
    assert stack.end() == 1
    assert "prefill-0 ended with status 1 while starting" in stack.output
    assert "  RuntimeError: prefill has no weights" in stack.lines
    assert "Traceback" not in stack.output  # that is in the log, which it names
    stack.gone()


def test_a_used_http_port_is_said_before_anything_starts(start: Start, folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        stack = start("up", "--port", str(port))
        assert stack.end() == 1
    assert stack.lines == [
        f"port {port} is already in use: choose another with --port N (make: PORT=N, setting: frontend.port)"
    ]
    assert not (folder / ".triptych").exists()


def test_a_used_port_of_a_server_that_was_asked_for_is_refused(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        stack = start("up", "--port", str(free_port()), "--set", f"nats.port={port}")
        assert stack.end() == 1
    assert stack.lines == [f"port {port} is already in use: choose another with --set nats.port=N"]


def test_two_stacks_side_by_side_need_only_another_http_port(start: Start) -> None:
    first = start("up", "--port", str(free_port()))
    first.wait_for("answers for model")
    second = start("up", "--port", str(free_port()))
    second.wait_for("answers for model")
    assert "nats.port is" in second.output
    assert "etcd.peer_port is" in second.output
    second.send(signal.SIGTERM)
    assert second.end() == 0
    assert len(first.processes()) == 8


def test_servers_that_the_settings_name_are_not_started(start: Start) -> None:
    servers = ("--set", "nats.servers=nats://127.0.0.1:1", "--set", "etcd.endpoints=127.0.0.1:2")
    stack = start("up", "-v", "--port", str(free_port()), *servers)
    stack.wait_for("answers for model")
    assert len(stack.processes()) == 6  # triptych and five roles
    stack.send(signal.SIGTERM)
    assert stack.end() == 0
    # Other frontends may be on that NATS: each role stops when those that send it requests have.
    assert drained(stack) == ["frontend", "processor", "decode", "prefill", "encode"]


def test_settings_reach_every_role_with_its_threads(start: Start, folder: Path) -> None:
    stack = start("up", "-v", "--set", "decode.max_batch=7", "--set", "decode.threads=3", *ports())
    stack.wait_for("answers for model")
    assert "decode-0    | settings: 7 3" in stack.output
    assert "processor-0 | settings: 7 1" in stack.output


def test_replicas_each_have_a_process_and_frontends_each_a_port(start: Start) -> None:
    stack = start("up", "--set", "encode.replicas=2", "--set", "frontend.replicas=2", *ports())
    stack.wait_for("answers for model")
    assert {stack.find(f"--id {name}") for name in ("encode-0", "encode-1", "frontend-1")}
    port = int(stack.output.split("http://127.0.0.1:")[1].split(" ")[0])
    with socket.create_connection(("127.0.0.1", port + 1)):
        pass


def test_a_wrong_setting_is_one_line(start: Start) -> None:
    stack = start("up", "--set", "decode.replicas=none")
    assert stack.end() == 1
    assert stack.lines == ["--set decode.replicas=none: decode.replicas: input should be a valid integer"]


def _empty(folder: Path) -> str:
    (folder / "model").mkdir()
    return "model"


def _cut_short(folder: Path) -> str:
    shutil.copytree(REPOSITORY / "models" / "tiny-vl", folder / "model")
    weights = next((folder / "model").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])
    return "model"


MODELS: dict[str, Callable[[Path], str]] = {
    "nope/nope is no folder here, and the hub has no such model": lambda folder: "nope/nope",
    "is no folder here, and no name of a model at the hub either": lambda folder: str(folder / "none"),
    "config.json: No such file or directory": _empty,
    "it was not copied to its end": _cut_short,
}


@pytest.mark.parametrize("command", [("up",), ("demo", "--once"), ("run", "prefill")], ids=" ".join)
@pytest.mark.parametrize("says", MODELS)
def test_a_model_that_cannot_be_served_is_one_line(
    start: Start, folder: Path, monkeypatch: pytest.MonkeyPatch, says: str, command: tuple[str, ...]
) -> None:
    with hub_without_models() as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        monkeypatch.setenv("HF_HOME", str(folder / "hub"))
        stack = start(*command, "--model", MODELS[says](folder))
        assert stack.end() == 1
    (line,) = stack.lines
    assert line.startswith("model.path: ") and says in line
    assert not (folder / ".triptych").exists()


def test_run_is_one_role_that_drains_on_sigterm(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    stack = start("run", "encode", "--id", "encode-x", "--set", "decode.max_batch=9")
    stack.wait_for("settings: 9")
    stack.send(signal.SIGTERM)
    assert stack.end() == 0
    assert "drained" in stack.output


def test_a_role_that_still_loads_its_weights_in_a_thread_ends_at_once(
    start: Start, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (folder / "load-decode").touch()
    stack = start("run", "decode", "--id", "decode-x")
    stack.wait_for("loading")
    stack.send(signal.SIGTERM)
    assert stack.end(10.0) == 0
    stack.gone()


def test_a_folder_that_cannot_be_written_to_is_one_line(start: Start, folder: Path) -> None:
    (folder / ".triptych").write_text("not a folder")
    stack = start("up", *ports())
    assert stack.end() == 1
    (line,) = stack.lines
    assert "start it in a folder that can be written to" in line
