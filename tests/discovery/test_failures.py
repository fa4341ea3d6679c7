"""A thread of discovery that fails: whoever waits is told, the process hears of it, and everything still ends."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from components import background
from components.discovery import DiscoveryEnded
from components.discovery.etcd import Etcd
from components.runtime.servers import EtcdServer
from tests.discovery.helpers import connected, number, shows
from tests.servers import ROOT
from tests.waiting import until


@pytest.fixture
def heard() -> Iterator[list[str]]:
    reasons: list[str] = []
    with background.ends_process(reasons.append):
        yield reasons


def broken(*_: object) -> object:
    raise OverflowError("no error of etcd's")


async def test_a_lease_that_is_not_kept_any_more(
    shared_etcd: EtcdServer, heard: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connected(shared_etcd) as registry, asyncio.timeout(10):
        registration = await registry.register("encode", "a", b"1")
        monkeypatch.setattr(Etcd, "keep", broken)
        with pytest.raises(DiscoveryEnded, match=r"lease /triptych/.*/encode/a has ended") as caught:
            await registration.update(b"2")
        assert isinstance(caught.value.__cause__, OverflowError)
        await until(
            lambda: heard == [f"lease {registration.key} ended unexpectedly"], lambda: heard
        )  # told after those who wait
        await registration.close()


async def test_a_registration_that_fails_at_once(
    shared_etcd: EtcdServer, heard: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Etcd, "grant", broken)
    async with connected(shared_etcd) as registry, asyncio.timeout(10):
        with pytest.raises(DiscoveryEnded):
            await registry.register("encode", "a", b"1")
        await until(lambda: len(heard) == 1, lambda: heard)


async def test_a_view_that_is_not_kept_any_more(
    etcd: EtcdServer, heard: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connected(etcd) as registry, asyncio.timeout(20):
        view = await registry.watch("encode", number)
        waiting = asyncio.create_task(view.wait_for(lambda instances: "a" in instances, 60))
        monkeypatch.setattr(Etcd, "list", broken)
        await etcd.kill()  # It lists anew.
        with pytest.raises(DiscoveryEnded):
            await waiting
        await until(lambda: len(heard) == 1, lambda: heard)
        with pytest.raises(DiscoveryEnded):
            await registry.watch("prefill", number)
        await view.close()


async def test_whoever_waits_for_a_view_that_is_closed_is_told(shared_etcd: EtcdServer, heard: list[str]) -> None:
    async with connected(shared_etcd) as registry, asyncio.timeout(10):
        view = await registry.watch("encode", number)
        waiting = asyncio.create_task(view.wait_for(lambda instances: "a" in instances, 60))
        await asyncio.sleep(0)
        await view.close()
        with pytest.raises(DiscoveryEnded):
            await waiting
        assert heard == []


async def test_everything_ends_while_etcd_is_silent(etcd: EtcdServer, heard: list[str]) -> None:
    async with asyncio.timeout(20):
        async with connected(etcd) as registry:
            view = await registry.watch("encode", number)
            await registry.register("encode", "a", b"1")
            await shows(view, {"a": 1})
            assert etcd.pid is not None
            os.kill(etcd.pid, signal.SIGSTOP)
    os.kill(etcd.pid, signal.SIGCONT)
    assert heard == []


ROLE = """
import asyncio
from components.cli import role
from components.discovery import Registry
from components.discovery.etcd import Etcd

def broken(*_):
    raise OverflowError

async def run(topology, instance):
    registry = await Registry.connect(["{endpoint}"], "failing")
    try:
        await registry.register("encode", "a", b"1", ttl=1.0)
        Etcd.keep = broken
        await asyncio.Event().wait()
    finally:
        await registry.close()
        print("left", flush=True)

print("status", asyncio.run(role._until_stopped(run(None, None))), flush=True)
"""


def test_a_role_that_cannot_keep_its_lease_ends(shared_etcd: EtcdServer) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", ROLE.format(endpoint=shared_etcd.endpoint)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.stdout.splitlines() == ["left", "status 70"], ended.stderr
