"""What strangers write into etcd: it is left out, said once, and harms no view."""

from __future__ import annotations

import logging

import pytest

from components.discovery.etcd import Etcd
from components.runtime.servers import EtcdServer
from tests.discovery.helpers import connected, number, shows

LONG = 1_400_000
"""Bytes of a value; etcd takes 1.5 MB, and three are more than gRPC reads at once by itself."""


async def test_a_value_that_does_not_decode_is_left_out_and_said_once(
    shared_etcd: EtcdServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with connected(shared_etcd) as registry:
        odd = await registry.register("encode", "odd", b"\xffnot a number")
        view = await registry.watch("encode", number)
        await registry.register("encode", "b", b"2")
        await shows(view, {"b": 2})
        assert list(view.refused) == ["odd"]
        await odd.update(b"3")
        await shows(view, {"b": 2, "odd": 3})
        assert not view.refused
        await odd.update(b"?")
        await shows(view, {"b": 2})
        await odd.update(b"??")
        await odd.close()
        await view.wait_for(lambda _: not view.refused, 5)
    said = [record.getMessage() for record in caplog.records if "is skipped" in record.getMessage()]
    assert len(said) == 2, said  # Once for each time that it came to be so.
    assert "/encode/odd" in said[0]


@pytest.mark.parametrize("error", [RecursionError, MemoryError, KeyError, OverflowError])
async def test_whatever_a_decoder_raises_the_entry_alone_is_left_out(
    shared_etcd: EtcdServer, error: type[Exception]
) -> None:
    def decode(id: str, value: bytes) -> int:
        if id == "deep":
            raise error("in a stranger's entry")
        return int(value)

    async with connected(shared_etcd) as registry:
        await registry.register("encode", "deep", b"1")
        view = await registry.watch("encode", decode)
        await registry.register("encode", "b", b"2")
        await shows(view, {"b": 2})
        assert view.refused == {"deep": view.refused["deep"]}
        assert error.__name__ in view.refused["deep"]


async def test_keys_and_reasons_cannot_forge_a_log_line(
    shared_etcd: EtcdServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with connected(shared_etcd) as registry:
        await registry.register("encode", "a\nFAKE", b"\n" + b"x" * 5000)
        view = await registry.watch("encode", number)
        assert list(view.refused) == ["a\nFAKE"]
        assert len(view.refused["a\nFAKE"]) <= 200
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "\n" not in line


async def test_entries_longer_than_grpc_reads_at_once(shared_etcd: EtcdServer) -> None:
    """In the list that a view begins with, and in the changes that it follows."""
    stranger = Etcd([shared_etcd.endpoint])
    lease = stranger.grant(60)
    try:
        async with connected(shared_etcd, "long") as registry:
            for name in "abcde":
                stranger.put(f"/triptych/long/encode/{name}", b"x" * LONG, lease)
            view = await registry.watch("encode", number)
            await registry.register("encode", "mine", b"1")
            await shows(view, {"mine": 1})
            for name in "fghij":
                stranger.put(f"/triptych/long/encode/{name}", b"x" * LONG, lease)
            await registry.register("encode", "yours", b"2")
            await shows(view, {"mine": 1, "yours": 2})
            assert set(view.refused) == set("abcdefghij")
    finally:
        stranger.revoke(lease)
        stranger.close()


async def test_more_entries_than_one_answer_holds(shared_etcd: EtcdServer) -> None:
    stranger = Etcd([shared_etcd.endpoint])
    lease = stranger.grant(60)
    try:
        async with connected(shared_etcd, "many") as registry:
            for index in range(100):
                stranger.put(f"/triptych/many/encode/{index}", str(index).encode(), lease)
            stranger.put("/triptych/many/encodf/7", b"another role's", lease)
            view = await registry.watch("encode", number)
            assert view.instances == {str(index): index for index in range(100)}
    finally:
        stranger.revoke(lease)
        stranger.close()


@pytest.mark.parametrize("harm", ["changed", "deleted"])
async def test_an_entry_that_a_stranger_takes_away_comes_back(
    shared_etcd: EtcdServer, caplog: pytest.LogCaptureFixture, harm: str
) -> None:
    stranger = Etcd([shared_etcd.endpoint])
    lease = stranger.grant(60)
    async with connected(shared_etcd) as registry:
        view = await registry.watch("encode", number)
        registration = await registry.register("encode", "a", b"1", ttl=1.0)
        await shows(view, {"a": 1})
        stranger.put(registration.key, b"stranger's", lease)
        if harm == "deleted":
            stranger.revoke(lease)
        await view.wait_for(lambda instances: not instances, 5)
        await shows(view, {"a": 1})
    assert f"somebody else has changed {registration.key}" in caplog.text
    stranger.close()
