"""The embedded servers start, say what is in their way, and leave nothing behind."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import suppress
from pathlib import Path

import pytest

from components.runtime.servers import EtcdServer, NatsServer, ServerError, find_binary, free_port, lasting_port
from tests.servers import process, until


def runs(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


async def test_they_start_restart_and_stop(tmp_path: Path) -> None:
    etcd = EtcdServer(free_port(), free_port(), tmp_path)
    assert etcd.pid is None
    await etcd.start()
    first = etcd.pid
    await etcd.restart()
    second = etcd.pid
    assert first is not None
    assert second is not None
    assert first != second
    assert not runs(first)
    await etcd.stop()
    await etcd.stop()
    assert etcd.pid is None
    assert not runs(second)


@pytest.mark.parametrize("taken", ["port", "peer_port"])
async def test_a_port_in_use_is_named_with_its_setting(tmp_path: Path, taken: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        ports = {"port": free_port(), "peer_port": free_port(), taken: port}
        with pytest.raises(ServerError, match=rf"port {port} .*`etcd\.{taken}`"):
            await EtcdServer(ports["port"], ports["peer_port"], tmp_path).start()
        if taken == "port":
            with pytest.raises(ServerError, match=rf"port {port} .*`nats\.port`"):
                await NatsServer(port, tmp_path).start()


async def test_a_server_that_ends_at_once_says_why(tmp_path: Path) -> None:
    (tmp_path / "etcd").write_text("a file where the folder should be")
    with pytest.raises(ServerError, match=r"etcd ended with status 1: .*not a directory"):
        await EtcdServer(free_port(), free_port(), tmp_path).start()


async def test_they_die_with_their_parent(tmp_path: Path) -> None:
    async with process("tests.runtime.orphan", str(tmp_path)) as parent:
        server = int(await parent.line())
        assert runs(server)
        parent.signal(signal.SIGKILL)
        await until(lambda: not runs(server))


def test_a_missing_program_is_named_with_its_package() -> None:
    with pytest.raises(ServerError, match="pip install some-package"):
        find_binary("no-such-server", "some-package")


def test_a_lasting_port_is_none_that_a_connection_may_get_meanwhile(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    dealt = tmp_path / "ip_local_port_range"
    monkeypatch.setattr("components.runtime.servers._EPHEMERAL_PORTS", dealt)
    dealt.write_text("10002\t65535\n")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 10000))
        assert {lasting_port() for _ in range(20)} == {10001}
    dealt.write_text("1024\t65535\n")  # some machines leave none
    assert lasting_port() >= 1024
