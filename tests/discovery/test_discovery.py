"""Instances come, change, leave and die; etcd goes away and comes back, with and without what it knew."""

from __future__ import annotations

import asyncio
import logging
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator

import pytest

from components.discovery import Registry, View
from components.discovery.etcd import Etcd
from components.runtime.servers import EtcdServer, free_port
from tests.servers import ROOT, process, until


@pytest.fixture
async def registry(etcd: EtcdServer) -> AsyncIterator[Registry]:
    registry = await Registry.connect([etcd.endpoint], "test")
    yield registry
    await registry.close()
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith(("watch", "lease"))] == []


def number(value: bytes) -> int:
    return int(value)


async def shows(view: View[int], expected: dict[str, int], seconds: float = 10.0) -> None:
    await view.wait_for(lambda instances: instances == expected, seconds)


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


async def test_namespaces_do_not_see_each_other(etcd: EtcdServer, registry: Registry) -> None:
    other = await Registry.connect([etcd.endpoint], "test2")
    await other.register("encode", "a", b"1")
    view = await registry.watch("encode", number)
    assert view.instances == {}
    await other.close()


async def test_wait_for_gives_up(registry: Registry) -> None:
    view = await registry.watch("encode", number)
    with pytest.raises(TimeoutError):
        await view.wait_for(lambda instances: "a" in instances, 0.1)


async def test_a_value_that_does_not_decode_is_left_out(registry: Registry, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        odd = await registry.register("encode", "odd", b"\xffnot a number")
        view = await registry.watch("encode", number)
        await registry.register("encode", "b", b"2")
        await shows(view, {"b": 2})
    assert "/triptych/test/encode/odd is skipped" in caplog.text
    await odd.update(b"3")
    await shows(view, {"b": 2, "odd": 3})
    await odd.update(b"?")
    await shows(view, {"b": 2})


async def test_a_killed_instance_disappears_with_its_lease(etcd: EtcdServer, registry: Registry) -> None:
    view = await registry.watch("encode", bytes.decode)
    async with process("tests.discovery.member", etcd.endpoint, "mortal") as member:
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


async def test_a_restart_of_etcd_keeps_everybody(etcd: EtcdServer, registry: Registry) -> None:
    view = await registry.watch("encode", number)
    registration = await registry.register("encode", "a", b"1", ttl=2.0)
    await shows(view, {"a": 1})
    await etcd.kill()
    changing = asyncio.create_task(registration.update(b"2"))
    # Away for longer than the lease lasts: what was known stays known.
    with pytest.raises(TimeoutError):
        await view.wait_for(lambda instances: instances != {"a": 1}, 2.5)
    await etcd.start()
    await changing
    await shows(view, {"a": 2})
    await registry.register("encode", "b", b"3")
    await shows(view, {"a": 2, "b": 3})


async def test_an_etcd_that_forgot_everything_is_told_again(etcd: EtcdServer, registry: Registry) -> None:
    view = await registry.watch("encode", number)
    await registry.register("encode", "a", b"1")
    await shows(view, {"a": 1})
    seen: list[bool] = []
    await etcd.kill()
    shutil.rmtree(etcd.data_dir / "etcd")
    await etcd.start()
    other = Etcd([etcd.endpoint])

    def told_again() -> bool:
        seen.append("a" in view.instances)
        return bool(other.list("/triptych/test/encode/")[0])

    await until(told_again)
    await registry.register("encode", "b", b"2")
    await shows(view, {"a": 1, "b": 2})
    assert all(seen)  # There was no moment at which it seemed to be gone.
    other.close()


async def test_another_member_is_asked_when_one_does_not_answer(etcd: EtcdServer) -> None:
    registry = await Registry.connect([f"127.0.0.1:{free_port()}", etcd.endpoint], "test")
    view = await registry.watch("encode", number)
    await registry.register("encode", "a", b"1")
    await shows(view, {"a": 1})
    await registry.close()


async def test_no_server_is_said_in_one_line() -> None:
    with pytest.raises(ConnectionError, match=r"127\.0\.0\.1:1 "):
        await Registry.connect(["127.0.0.1:1"], "test", wait=0.3)


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
