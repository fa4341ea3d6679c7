"""Hostile records and hostile notifications. Whatever comes: a typed error before anything is allocated, registered,
loaded or posted, a message that is ignored, and counters that have not moved."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import secrets
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from components import nixl_connect as nc
from components.nixl_connect import Connector, Descriptor, RdmaMetadata, lease, parse_record, peers
from components.nixl_connect.agent import load_nixl
from components.nixl_connect.wire import Kind, Message, Reason, decode, encode

from .harness import Remote, at_rest, pattern, remote, until

SIZE = 4096
REFUSALS = (nc.BadRecord, nc.InvalidBuffer, nc.PeerUnknown)
fuzz = settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@dataclass
class Victim:
    """A connector that is given bad records of an exposer that lives, and a good one of them."""

    runner: asyncio.Runner
    connector: Connector
    other: Remote
    read: dict[str, Any]
    write: dict[str, Any]

    def begin(self, record: Any, *, kind: str = "read", buffers: list[int] | None = None, **options: Any) -> Any:
        """What an application does with text it was handed."""

        async def use() -> None:
            parsed = parse_record(record)
            local = [Descriptor(np.zeros(size, np.uint8)) for size in buffers or [SIZE]]
            if kind == "read":
                operation: Any = await self.connector.begin_read(parsed, local, **options)
            else:
                operation = await self.connector.begin_write(local, parsed, **options)
            await operation.wait_for_completion()

        return self.runner.run(use())

    def refuses(self, record: Any, **how: Any) -> nc.TransferError:
        gc.collect()  # what an earlier test let go of is unregistered when it is collected, not in the middle of this
        self.runner.run(self.connector.start())
        before = self.connector.counters()
        with pytest.raises(nc.TransferError) as caught:
            self.begin(record, **how)
        assert isinstance(caught.value, REFUSALS), repr(caught.value)
        assert self.connector.counters() == before, "something was begun"
        return caught.value


@pytest.fixture(scope="module")
def victim() -> Iterator[Victim]:
    with asyncio.Runner() as runner:

        async def start() -> Victim:
            connector = Connector("victim")
            await connector.start()
            other = await Remote("exposer", 8 << 20, {}).ready()
            info = {"model_revision": "r1"}
            read = json.loads(await other.ask("expose", number=1, size=SIZE, lease=600.0, readers=None, info=info))
            write = json.loads(await other.ask("accept", number=2, sizes=[SIZE] * 2, lease=600.0))
            return Victim(runner, connector, other, read, write)

        made = runner.run(start())
        yield made
        assert made.connector.counters().registrations <= 1 and at_rest(made.connector.counters())
        # After all that the good record is as good as it was, and the exposer has noticed nothing.
        made.begin(json.dumps(made.read))
        counters = runner.run(made.other.ask("counters"))
        assert counters["leases"] == 2 and counters["quarantined"] == 0 and counters["refused_total"] == {}
        runner.run(made.connector.close())
        runner.run(made.other.stop())


def sealed(record: dict[str, Any]) -> str:
    """As a forger would: altered, and the seal made to fit. Still not well-formed: as it is."""
    try:
        return RdmaMetadata.model_validate(record).sealed().model_dump_json()
    except ValueError:
        return json.dumps(record)


# altered on the way, or by somebody who does not know how to seal

anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 80), 1 << 80),
    st.floats(),
    st.text(max_size=20),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=2),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every field of a record, however deep."""
    if isinstance(value, dict):
        inside = [places(item, (*path, key)) for key, item in value.items()]
    elif isinstance(value, list):
        inside = [places(item, (*path, index)) for index, item in enumerate(value)]
    else:
        inside = []
    return [path, *(place for found in inside for place in found)]


def altered(record: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    copy = dict(record) if isinstance(record, dict) else list(record)
    copy[path[0]] = altered(copy[path[0]], path[1:], value)
    return copy


@fuzz
@given(data=st.data())
def test_any_field_altered(victim: Victim, data: st.DataObject) -> None:
    good = victim.read
    place = data.draw(st.sampled_from(places(good)), label="field")
    bad = altered(good, place, data.draw(anything, label="value"))
    same = False
    with contextlib.suppress(ValueError):
        same = RdmaMetadata.model_validate(bad) == RdmaMetadata.model_validate(good)
    if not same:  # 1 and True and 1.0 are one
        victim.refuses(json.dumps(bad))


@fuzz
@given(data=st.data())
def test_truncated_or_with_a_byte_changed(victim: Victim, data: st.DataObject) -> None:
    text = json.dumps(victim.read).encode()
    cut = data.draw(st.integers(0, len(text) - 1), label="length")
    victim.refuses(text[:cut])
    changed = bytearray(text)
    changed[cut] = data.draw(st.integers(0, 255).filter(lambda byte: byte != text[cut]), label="byte")
    try:
        same = parse_record(changed) == parse_record(text)
    except nc.BadRecord:
        same = False
    if not same:
        victim.refuses(bytes(changed))


@fuzz
@given(st.one_of(st.binary(max_size=200), st.text(max_size=200), st.recursive(anything, st.lists)))
def test_what_is_no_record_at_all(victim: Victim, junk: Any) -> None:
    victim.refuses(junk)


def test_nesting_without_end(victim: Victim) -> None:
    victim.refuses("[" * 200_000)
    victim.refuses('{"regions":' * 100_000)


LARGE: dict[str, Callable[[], str]] = {
    "a million fields": lambda: "{" + ",".join(f'"a{i}":1' for i in range(1_000_000)) + "}",
    "fields as many as fit": lambda: "{" + ",".join(f'"a{i}":1' for i in range(300_000)) + "}",
    "a long field": lambda: '{"' + "a" * 4_000_000 + '":1}',
    "a name of 4 MB": lambda: '{"peer":"' + "a" * 4_000_000 + '"}',
    "a name of 20 MB": lambda: '{"peer":"' + "a" * 20_000_000 + '"}',
    "many numbers for buffers": lambda: '{"descriptors":[' + ",".join("1" for _ in range(16_000)) + "]}",
    "many bad buffers": lambda: '{"descriptors":[' + ",".join('{"a":1}' for _ in range(16_000)) + "]}",
    "many bad regions": lambda: '{"regions":[' + ",".join('{"id":-1}' for _ in range(2_000)) + "]}",
    "a number of 4 million digits": lambda: '{"descriptors":[{"ptr":' + "9" * 4_000_000 + "}]}",
    "dimensions of 4,000 digits": lambda: '{"descriptors":[{"shape":[' + ",".join(["9" * 4000] * 16) + "]}]}",
    "many items of info": lambda: '{"info":{' + ",".join(f'"a{i}":"1"' for i in range(300_000)) + "}}",
}


@pytest.mark.parametrize("what", LARGE)
def test_large(victim: Victim, what: str) -> None:
    """10 MB of unknown fields made 180 MB of words about them, in 6 s and 1.4 GB."""
    text = LARGE[what]()
    error = victim.refuses(text)
    assert len(str(error)) <= 1000
    tracemalloc.start()
    try:
        with pytest.raises(nc.BadRecord):
            parse_record(text)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 << 20


def test_what_no_peer_would_take_is_not_exposed(victim: Victim) -> None:
    small, deep = Descriptor(np.zeros(8, np.uint8)), Descriptor(np.zeros((1,) * 17, np.uint8))

    async def fails(error: type[Exception], buffers: Any, **options: Any) -> None:
        with pytest.raises(error):
            await victim.connector.create_readable(buffers, **options)

    async def all_of_them() -> None:
        await fails(nc.InvalidBuffer, [small] * ((1 << 14) + 1))
        await fails(nc.InvalidBuffer, deep)
        for reader in ("", "a" * 300, "a b", "a@\x00"):
            await fails(ValueError, small, reader=reader)
        for info in ({"a": "b" * 5000}, {"a" * 200: "b"}, {str(i): "" for i in range(65)}, {"a": 1}):
            await fails(ValueError, small, info=info)
        for seconds in (0.0, -1.0, 1e6, 1e308, float("inf"), float("nan")):
            await fails(ValueError, small, lease=seconds)
        async with await victim.connector.create_readable(small) as operation:
            for seconds in (0.0, -1.0, 1e308, float("inf"), float("nan")):
                with pytest.raises(ValueError, match="a lease of"):
                    operation.renew(seconds)

    before = victim.connector.counters()
    victim.runner.run(all_of_them())
    after = victim.connector.counters()
    assert at_rest(after) and after.registered_total <= before.registered_total + 1


# forged by somebody who seals: well-formed, and refused before anything is done

item, region = ("descriptors", 0), ("regions", 0)
FORGERIES: dict[str, tuple[tuple[Any, ...], Callable[[Any], Any]]] = {
    "before the region": ((*item, "ptr"), lambda ptr: 1),
    "after the region": ((*item, "ptr"), lambda ptr: ptr + (1 << 40)),
    "over the region's end": ((*item, "size"), lambda size: 1 << 40),
    "over the address space": ((*item, "ptr"), lambda ptr: (1 << 64) - 2),
    "beyond 64 bits": ((*item, "ptr"), lambda ptr: 1 << 64),
    "giant": ((*item, "size"), lambda size: 1 << 62),
    "negative": ((*item, "size"), lambda size: -size),
    "a region that is not announced": ((*item, "region"), lambda id: id + 7),
    "a device of no region": ((*item, "device"), lambda device: "cuda:0"),
    "an unknown device": ((*item, "device"), lambda device: "xpu:0"),
    "an unknown dtype": ((*item, "dtype"), lambda dtype: "float7"),
    "a dtype to evaluate": ((*item, "dtype"), lambda dtype: "O"),
    "a shape of many dimensions": ((*item, "shape"), lambda shape: [1] * 64),
    "a negative shape": ((*item, "shape"), lambda shape: [-4096]),
    "a shape of more bytes": ((*item, "shape"), lambda shape: [1 << 40]),
    "a shape of fewer bytes": ((*item, "shape"), lambda shape: [4095]),
    "a shape of nothing": ((*item, "shape"), lambda shape: [4096, 0]),
    "half a buffer": ((*item, "size"), lambda size: size // 2),
    "no buffer": (("descriptors",), lambda items: []),
    "two buffers": (("descriptors",), lambda items: items * 2),
    "too many buffers": (("descriptors",), lambda items: items * 66_000),
    "one region twice": (("regions",), lambda regions: regions * 2),
    "no region": (("regions",), lambda regions: []),
    "metadata that is not base64": ((*region, "nixl_metadata"), lambda text: "!" + text),
    "metadata without its padding": ((*region, "nixl_metadata"), lambda text: text.rstrip("=") + "A" * 5),
    "metadata without end": ((*region, "nixl_metadata"), lambda text: "A" * (1 << 22)),
    "no metadata, of a stranger": (("generation",), lambda generation: "0" * 16),
    "another generation": (("generation",), lambda generation: "0123456789abcdef"),
    "another peer": (("peer",), lambda peer: "somebody-else"),
    "a peer's name with a path": (("peer",), lambda peer: "../\x00"),
    "for another reader": (("reader",), lambda reader: "somebody@0123456789abcdef"),
    "another kind": (("operation_kind",), lambda kind: 2),
    "no kind": (("operation_kind",), lambda kind: 0),
    "another version": (("version",), lambda version: version + 1),
    "the version before": (("version",), lambda version: version - 1),
    "an end of time": (("lease_until",), lambda time: 1e300),
    "a generation of 72 bits": (("generation",), lambda generation: generation + "00"),
    "a key of 10 MB": (("notification_key",), lambda key: key * 100_000),
    "a host of 1 MB": (("host",), lambda host: host * 65_536),
    "a dimension beyond all memory": ((*item, "shape"), lambda shape: [0, 1 << 60]),
    "a device without end": ((*item, "device"), lambda device: "cuda:" + "9" * 10_000),
    "a region of 31 bits and one": ((*item, "region"), lambda id: 1 << 31),
    "an end of time that is none": (("lease_until",), lambda time: float("nan")),
    "an endless lease": (("lease_until",), lambda time: float("inf")),
    "an end before all time": (("lease_until",), lambda time: -1.0),
    "too much info": (("info",), lambda info: {str(i): "x" for i in range(65)}),
    "long info": (("info",), lambda info: {"a": "x" * 5000}),
    "info with a long name": (("info",), lambda info: {"a" * 200: "x"}),
    "too many regions": (("regions",), lambda regions: [regions[0] | {"id": i} for i in range(2049)]),
    "a short key": (("notification_key",), lambda key: key[:-2]),
}


@pytest.mark.parametrize("what", FORGERIES)
def test_forged(victim: Victim, what: str) -> None:
    place, change = FORGERIES[what]
    value: Any = victim.read
    for step in place:
        value = value[step]
    bad = altered(victim.read, place, change(value))
    if what == "no metadata, of a stranger":
        bad = altered(bad, (*region, "nixl_metadata"), None)
    if what == "another generation" or what == "another peer":
        # The metadata itself says whose it is: what it loaded is unloaded, so this is the one case that loads at all.
        with pytest.raises(nc.BadRecord):
            victim.begin(sealed(bad))
        assert victim.connector.counters().peers <= 1 and at_rest(victim.connector.counters())
        return
    victim.refuses(sealed(bad))


def test_of_another_model_revision_or_layout(victim: Victim) -> None:
    text = json.dumps(victim.read)
    error = victim.refuses(text, expect={"model_revision": "r2"})
    assert "r1" in str(error) and "r2" in str(error)
    victim.refuses(text, expect={"layout": "1"})
    victim.refuses(json.dumps(victim.write), kind="write", buffers=[SIZE] * 2, expect={"model_revision": "r1"})


@pytest.mark.parametrize("buffers", [[SIZE - 1], [SIZE + 1], [SIZE, SIZE], [1 << 20]])
def test_local_buffers_of_another_size(victim: Victim, buffers: list[int]) -> None:
    assert isinstance(victim.refuses(json.dumps(victim.read), buffers=buffers), nc.InvalidBuffer)


@pytest.mark.parametrize(("dtype", "shape"), [("float32", [4096]), ("float32", [2, 256]), ("uint8", []), (None, [3])])
def test_a_dtype_and_a_shape_that_are_not_its_bytes(victim: Victim, dtype: str | None, shape: list[int]) -> None:
    """Whoever allocates by them would get another buffer than the one that is moved."""
    changed = altered(altered(victim.read, (*item, "dtype"), dtype), (*item, "shape"), shape)
    victim.refuses(sealed(changed))
    fits = altered(altered(victim.read, (*item, "dtype"), "float32"), (*item, "shape"), [2, 512])
    assert parse_record(fits).descriptors[0].shape == (2, 512)


def test_used_the_wrong_way_round(victim: Victim) -> None:
    assert isinstance(victim.refuses(json.dumps(victim.read), kind="write"), nc.BadRecord)
    assert isinstance(victim.refuses(json.dumps(victim.write), buffers=[SIZE] * 2), nc.BadRecord)


async def test_announced_differently_from_before(connector: Connector, other: Remote) -> None:
    """A record may not move or stretch a region that its peer has announced already."""
    first = parse_record(await other.ask("expose", number=1, size=SIZE, readers=None))
    await (await connector.begin_read(first, Descriptor(np.zeros(SIZE, np.uint8)))).wait_for_completion()
    before = connector.counters().peer_loads_total
    for change in ({"size": first.regions[0].size * 2}, {"ptr": first.regions[0].ptr - 4096, "size": 1 << 30}):
        stretched = first.regions[0].model_copy(update=change)
        operation = await connector.begin_read(
            first.model_copy(update={"regions": (stretched,)}).sealed(), Descriptor(np.zeros(SIZE, np.uint8))
        )
        with pytest.raises(nc.BadRecord):
            await operation.wait_for_completion()
    assert connector.counters().peer_loads_total == before and at_rest(connector.counters())


async def test_replayed_expired_and_stolen(connector: Connector, other: Remote) -> None:
    """What only the exposer can know, it refuses when the record is claimed, with the reason as a type."""

    async def error_of(record: RdmaMetadata) -> nc.TransferError:
        operation = await connector.begin_read(record, Descriptor(np.zeros(SIZE, np.uint8)))
        with pytest.raises(nc.TransferError) as caught:
            await operation.wait_for_completion()
        return caught.value

    used = parse_record(await other.ask("expose", number=1, size=SIZE))
    await (await connector.begin_read(used, Descriptor(np.zeros(SIZE, np.uint8)))).wait_for_completion()
    assert type(await error_of(used)) is nc.RecordConsumed
    expired = parse_record(await other.ask("expose", number=2, size=SIZE, lease=0.05))
    with pytest.raises(nc.LeaseExpired):
        await other.ask("wait", number=2)
    assert type(await error_of(expired)) is nc.LeaseExpired
    # Fields that are sealed anew by the thief are not what the exposer issued under that key.
    bound = parse_record(await other.ask("expose", number=3, size=SIZE, reader="somebody@0123456789abcdef"))
    stolen = bound.model_copy(update={"reader": None}).sealed()
    error = await error_of(stolen)
    assert type(error) is nc.BadRecord and "altered" in str(error)
    stretched = used.model_copy(update={"notification_key": bound.notification_key}).sealed()
    assert type(await error_of(stretched)) is nc.BadRecord
    invented = bound.model_copy(update={"reader": None, "notification_key": "00" * 16}).sealed()
    error = await error_of(invented)
    assert type(error) is nc.BadRecord and "unknown" in str(error)
    assert (await other.ask("counters"))["leases"] == 1
    await until(lambda: at_rest(connector.counters()))


async def test_of_a_generation_that_is_gone(connector: Connector) -> None:
    """The exposer was started again under its name: its old record leads nowhere, and the new one works."""
    async with remote("again") as first:
        old = parse_record(await first.ask("expose", number=1, size=SIZE, lease=60.0))
        first.kill()
    async with remote("again") as second:
        new = parse_record(await second.ask("expose", number=1, size=SIZE))
        target = np.zeros(SIZE, np.uint8)
        stale = await connector.begin_read(old, Descriptor(np.zeros(SIZE, np.uint8)), deadline=1.0)
        with pytest.raises(nc.TransferError) as caught:
            await stale.wait_for_completion()
        assert isinstance(caught.value, nc.PeerLost | nc.DeadlineExceeded)
        await (await connector.begin_read(new, Descriptor(target))).wait_for_completion()
        assert np.array_equal(target, pattern(SIZE, 1))
    await until(lambda: at_rest(connector.counters()))


# notifications

kinds = st.sampled_from(list(Kind))
keys = st.binary(min_size=16, max_size=16)
bodies = st.one_of(
    st.binary(max_size=64),
    st.builds(
        lambda head, kind, key, claim, body: head + bytes([kind]) + key + claim.to_bytes(8, "big") + body,
        st.just(b"T\x02"),
        st.one_of(kinds.map(int), st.integers(0, 255)),
        keys,
        st.integers(0, (1 << 64) - 1),
        st.binary(max_size=64),
    ),
)


@settings(max_examples=1000, deadline=None, derandomize=True)
@given(bodies)
def test_decode_takes_any_bytes(data: bytes) -> None:
    message = decode(data)
    assert message is None or encode(message) == data


@pytest.mark.parametrize("seconds", [0.0, -1.0, 1e6, 1e308, float("inf"), float("-inf"), float("nan")])
def test_decode_bounds_times(seconds: float) -> None:
    claim = Message(Kind.CLAIM, bytes(16), 1, seal=bytes(16), seconds=seconds, name="x")
    assert decode(encode(claim)) is None
    grant = Message(Kind.GRANT, bytes(16), 1, clock=seconds)
    assert (decode(encode(grant)) is None) is (not 0.0 <= seconds < 1e11)


def test_decode_bounds_names_and_metadata() -> None:
    fits = Message(Kind.CLAIM, bytes(16), 1, seal=bytes(16), seconds=1.0, name="x" * 512, metadata=bytes(1 << 20))
    assert decode(encode(fits)) == fits
    assert decode(encode(fits._replace(name="x" * 513))) is None
    assert decode(encode(fits._replace(metadata=bytes((1 << 20) + 1)))) is None
    assert decode(encode(fits) + b"x" * (10 << 20)) is None


class Mallory:
    """A raw NIXL agent that can send whatever it likes to a connector, and is known to it or not."""

    def __init__(self, name: Any, victim: bytes) -> None:
        api, _ = load_nixl()
        self._agent = api.nixl_agent(name, api.nixl_agent_config(enable_prog_thread=False, backends=[]))
        self._agent.create_backend("UCX", {})
        loaded = self._agent.add_remote_agent(victim)
        self._victim = loaded.decode() if isinstance(loaded, bytes) else loaded
        self.metadata = bytes(self._agent.get_agent_metadata())

    def say(self, data: bytes) -> None:
        self._agent.send_notif(self._victim, data)

    def hear(self) -> list[bytes]:
        """What has come; makes its own messages go on, too."""
        return [one for many in self._agent.get_new_notifs().values() for one in many]

    def leave(self) -> None:
        self._agent.remove_remote_agent(self._victim)


@pytest.fixture
async def mallory(connector: Connector) -> AsyncIterator[Mallory]:
    made = Mallory("mallory@0123456789abcdef", await connector._call(lambda core: core.agent.metadata()))
    yield made
    made.leave()


async def ignores(connector: Connector, mallory: Mallory, messages: list[bytes]) -> None:
    """All of them have arrived, and nothing came of any."""
    before = connector.counters().ignored_notifications_total
    for data in messages:
        mallory.say(data)

    def arrived() -> bool:
        mallory.hear()
        return connector.counters().ignored_notifications_total >= before + len(messages)

    await until(arrived)


async def test_an_exposer_survives_hostile_notifications(connector: Connector, mallory: Mallory, other: Remote) -> None:
    target = np.zeros(SIZE, np.uint8)
    readable = await connector.create_readable(Descriptor(pattern(SIZE, 8)))
    writable = await connector.create_writable(Descriptor(target))
    keys = [bytes.fromhex(one.metadata().notification_key) for one in (readable, writable)]
    before = connector.counters()
    random = np.random.default_rng(5)
    junk = [random.bytes(int(length)) for length in random.integers(0, 300, 300)]
    junk += [b"T\x02" + random.bytes(int(length)) for length in random.integers(0, 300, 300)]
    junk += [random.bytes(1 << 20), b"", b"\x00", b"T\x02"]
    whole = encode(Message(Kind.CLAIM, keys[0], 1, seal=bytes(16), seconds=1.0, name="x", metadata=b"m" * 40))
    junk += [whole[:length] for length in range(len(whole))]
    # Well-formed, of the right key even, from somebody who never claimed.
    for key in (*keys, secrets.token_bytes(16)):
        for claim in (0, 1, 1 << 63):
            junk += [encode(Message(kind, key, claim)) for kind in (Kind.GRANT, Kind.DONE, Kind.PING)]
            reasons = [(kind, reason) for kind in (Kind.REFUSE, Kind.END, Kind.REVOKE) for reason in Reason]
            junk += [encode(Message(kind, key, claim, reason)) for kind, reason in reasons]
    # A claim in its own name with metadata that is none, or of somebody else.
    for metadata in (b"", b"junk", random.bytes(5000)):
        name = "mallory@0123456789abcdef"
        junk.append(encode(Message(Kind.CLAIM, keys[0], 1, seal=bytes(16), seconds=1.0, name=name, metadata=metadata)))
    await ignores(connector, mallory, junk)
    after = connector.counters()
    assert (after.leases, after.peers, after.peer_loads_total) == (before.leases, before.peers, before.peer_loads_total)
    assert readable.status is writable.status is nc.OperationStatus.INITIALIZED
    assert not target.any()
    assert await other.ask("read", number=8, record=readable.metadata().model_dump_json(), seed=8)
    await readable.wait_for_completion()


async def test_a_known_peer_with_a_wrong_seal_or_claim_gets_nothing(connector: Connector, mallory: Mallory) -> None:
    """Introduced as anybody may be, it is refused by name of the reason, and can end nothing."""
    operation = await connector.create_writable(Descriptor(np.zeros(SIZE, np.uint8)))
    record = operation.metadata()
    key = bytes.fromhex(record.notification_key)
    name = "mallory@0123456789abcdef"
    claim = Message(Kind.CLAIM, key, 1, seal=bytes(16), seconds=5.0, name=name, metadata=mallory.metadata)
    mallory.say(encode(claim))
    heard: list[bytes] = []

    def refused() -> bool:
        heard.extend(mallory.hear())
        return bool(heard)

    await until(refused)
    message = decode(heard[0])
    assert message is not None and (message.kind, message.reason) == (Kind.REFUSE, Reason.ALTERED)
    done = [encode(Message(Kind.DONE, key, 1)), encode(Message(Kind.END, key, 1, Reason.CANCELLED))]
    await ignores(connector, mallory, done)
    assert operation.status is nc.OperationStatus.INITIALIZED
    assert connector.counters().refused_total == {"altered": 1}


async def test_a_name_that_is_no_text(connector: Connector, other: Remote) -> None:
    """NIXL's binding raises for it, out of the call that fetches everybody's messages."""
    victim = await connector._call(lambda core: core.agent.metadata())
    mallory = Mallory(b"mallory-\xff\xfe", victim)
    try:
        mallory.say(b"hello")
        await until(lambda: mallory.hear() == [] and connector.counters().ignored_notifications_total > 0)
        readable = await connector.create_readable(Descriptor(pattern(SIZE, 8)))
        assert await other.ask("read", number=8, record=readable.metadata().model_dump_json(), seed=8)
        await readable.wait_for_completion()
    finally:
        mallory.leave()


async def test_claims_and_introductions_are_bounded(
    connector: Connector, mallory: Mallory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever holds a record for any number of readers may claim it without end, and anybody may introduce himself."""
    monkeypatch.setattr(lease, "MAX_CLAIMS", 8)
    operation = await connector.create_readable(Descriptor(np.zeros(SIZE, np.uint8)), readers=None)
    record = operation.metadata()
    first = Message(
        Kind.CLAIM,
        bytes.fromhex(record.notification_key),
        1,
        seal=bytes.fromhex(record.seal),
        seconds=900.0,
        name="mallory@0123456789abcdef",
        metadata=mallory.metadata,
    )
    monkeypatch.setattr(peers, "MAX_PEERS", 0)
    await ignores(connector, mallory, [encode(first)])
    assert connector.counters().peers == 0
    monkeypatch.setattr(peers, "MAX_PEERS", 1)
    for number in range(20):
        mallory.say(encode(first._replace(claim=number)))
    heard: list[bytes] = []

    def all_answered() -> bool:
        heard.extend(mallory.hear())
        return len(heard) >= 20

    await until(all_answered)
    answers = [message for message in map(decode, heard) if message is not None and message.kind is not Kind.PING]
    assert [message.kind for message in answers].count(Kind.GRANT) == 8
    assert connector._pump.core is not None and connector._pump.core.leases.claims == 8
    assert connector.counters().refused_total == {"consumed": 12}


async def test_regions_of_one_peer_are_bounded(connector: Connector, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each record names a region that is known and one that is new: the table was never emptied."""
    monkeypatch.setattr(peers, "MAX_REGIONS", 4)
    monkeypatch.setattr(peers, "HARD_REGIONS", 8)
    kept = Descriptor(pattern(SIZE, 0))
    async with Connector("near") as near:
        refused = 0
        for _ in range(20):
            buffers = [kept, Descriptor(np.zeros(SIZE, np.uint8))]
            operation = await connector.create_readable(buffers)
            target = [Descriptor(np.zeros(SIZE, np.uint8)) for _ in buffers]
            read = await near.begin_read(operation.metadata(), target)
            try:
                await read.wait_for_completion()
            except nc.PeerUnknown:
                refused += 1
            operation.cancel()
            await operation.wait_for_release()
            assert near._pump.core is not None
            assert all(len(peer.regions) <= 8 for peer in near._pump.core.peers)
        assert refused < 8 and at_rest(near.counters())
