"""etcd goes away and comes back, with and without what it knew."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal

import pytest

from components.discovery.etcd import Etcd
from components.runtime.servers import EtcdServer
from tests.discovery.helpers import connected, number, shows
from tests.servers import process, until


async def test_a_restart_of_etcd_keeps_everybody(etcd: EtcdServer) -> None:
    async with connected(etcd, "test") as registry:
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


async def test_an_etcd_that_forgot_everything_is_told_again(etcd: EtcdServer) -> None:
    async with connected(etcd, "test") as registry:
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


@pytest.mark.parametrize("seconds", [5.0, 16.0], ids=["unnoticed by the watch", "the watch lost"])
async def test_a_stall_of_etcd_takes_nobody_away(
    etcd: EtcdServer, caplog: pytest.LogCaptureFixture, seconds: float
) -> None:
    """It stands still for longer than the leases last, and ends them all when it goes on: nobody seems gone, and who
    really went meanwhile is removed."""
    async with (
        connected(etcd, "stalled") as registry,
        process("tests.discovery.member", etcd.endpoint, "stalled", "mortal") as member,
    ):
        assert await member.line() == "ready"
        view = await registry.watch("encode", lambda id, value: value)
        await registry.register("encode", "a", b"1", ttl=2.0)
        await view.wait_for(lambda instances: instances.keys() == {"a", "mortal"}, 5)
        gone = asyncio.create_task(view.wait_for(lambda instances: "a" not in instances, 120))
        assert etcd.pid is not None
        os.kill(etcd.pid, signal.SIGSTOP)
        try:
            member.signal(signal.SIGKILL)
            await asyncio.wait([gone], timeout=seconds)
        finally:
            os.kill(etcd.pid, signal.SIGCONT)
        await view.wait_for(lambda instances: instances.keys() == {"a"}, 30)
        assert not gone.done()
        gone.cancel()
    assert "the lease of /triptych/stalled/encode/a ran out" in caplog.text
