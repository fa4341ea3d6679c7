"""Instances come, change, leave and die."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator

import pytest

from components.discovery import InstanceTaken, Registry
from components.runtime.servers import EtcdServer, free_port
from tests.discovery.helpers import connected, number, shows
from tests.servers import ROOT, process


@pytest.fixture
async def registry(shared_etcd: EtcdServer) -> AsyncIterator[Registry]:
    async with connected(shared_etcd) as registry:
        yield registry


async def test_a_view_follows_instances_as_they_come_change_and_leave(registry: Registry) -> None:
    first = await registry.register("encode", "a", b"1")
    view = await registry.watch("encode", number)
    assert view.instances == {"a": 1}
    second = await registry.register("encode", "b", b"2")
    await registry.register("prefill", "c", b"3")
    await shows(view, {"a": 1, "b": 2})
    await first.update(b"10")
    await shows(view, {"a": 10, "b": 2})
    began = time.monotonic()
    await second.close()
    await shows(view, {"a": 10})
    # At once, not when the lease runs out.
    assert time.monotonic() - began < 2


async def test_namespaces_do_not_see_each_other(shared_etcd: EtcdServer, registry: Registry) -> None:
    async with connected(shared_etcd) as other:
        await other.register("encode", "a", b"1")
        view = await registry.watch("encode", number)
        assert view.instances == {}


async def test_an_id_is_free_once_its_owner_has_left(registry: Registry) -> None:
    await registry.until_free("encode", "a")
    owner = await registry.register("encode", "a", b"1")
    await registry.register("encode", "ab", b"1")
    with pytest.raises(InstanceTaken, match="as encode a;"):
        await registry.until_free("encode", "a", seconds=0.3)
    waiting = asyncio.create_task(registry.until_free("encode", "a"))
    await owner.close()
    await waiting


async def test_wait_for_gives_up(registry: Registry) -> None:
    view = await registry.watch("encode", number)
    with pytest.raises(TimeoutError):
        await view.wait_for(lambda instances: "a" in instances, 0.1)


async def test_a_killed_instance_disappears_with_its_lease(shared_etcd: EtcdServer) -> None:
    async with (
        connected(shared_etcd, "mortals") as registry,
        process("tests.discovery.member", shared_etcd.endpoint, "mortals", "mortal") as member,
    ):
        view = await registry.watch("encode", lambda id, value: value)
        assert await member.line() == "ready"
        await view.wait_for(lambda instances: "mortal" in instances, 5)
        member.signal(signal.SIGKILL)
        await view.wait_for(lambda instances: not instances, 6)


async def test_a_lease_outlives_a_busy_process(registry: Registry) -> None:
    view = await registry.watch("encode", number)
    registration = await registry.register("encode", "a", b"1", ttl=2.0)
    await shows(view, {"a": 1})
    idle = threading.Event()
    # Every thread that asyncio shares is taken, for longer than the lease lasts.
    waits = [asyncio.get_running_loop().run_in_executor(None, idle.wait) for _ in range(64)]
    try:
        with pytest.raises(TimeoutError):
            await view.wait_for(lambda instances: not instances, 3.0)
        await registration.update(b"2")
        await shows(view, {"a": 2})
    finally:
        idle.set()
        await asyncio.gather(*waits)


async def test_another_member_is_asked_when_one_does_not_answer(shared_etcd: EtcdServer) -> None:
    registry = await Registry.connect([f"127.0.0.1:{free_port()}", shared_etcd.endpoint], "two members")
    view = await registry.watch("encode", number)
    await registry.register("encode", "a", b"1")
    await shows(view, {"a": 1})
    await registry.close()


async def test_no_server_is_said_in_one_line() -> None:
    with pytest.raises(ConnectionError, match=r"127\.0\.0\.1:1 "):
        await Registry.connect(["127.0.0.1:1"], "test", wait=0.3)


async def test_an_endpoint_that_is_none_is_refused_at_once() -> None:
    for endpoint in ("localhost", "localhost:port", "http://localhost:2379", ":2379"):
        with pytest.raises(ValueError, match="host:port"):
            await Registry.connect([endpoint], "test", wait=60)


async def test_a_server_that_is_silent_is_waited_for_no_longer_than_was_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"127.0.0.1:{silent.getsockname()[1]}"
        began = time.monotonic()
        with pytest.raises(ConnectionError, match=f"no etcd answers at {endpoint}"):
            await Registry.connect([endpoint], "test", wait=0.5)
        assert time.monotonic() - began < 1.5


def test_the_wrong_protobuf_is_named() -> None:
    program = "import google.protobuf.message, components.discovery"
    for implementation, status in (("upb", 1), ("python", 0)):
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env={"PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": implementation},
            capture_output=True,
            text=True,
        )
        assert done.returncode == status, done.stderr
        assert status == 0 or "import components.discovery first" in done.stderr.splitlines()[-1]
