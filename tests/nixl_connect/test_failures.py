"""What fails on this side, at any step: memory, NIXL itself, its agent, the thread. Whatever was begun is given back,
whatever waits is told, by a typed error and in time; and what cannot be mended is loud."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components import background
from components import nixl_connect as nc
from components.config import Topology
from components.nixl_connect import (
    Connector,
    Descriptor,
    OperationStatus,
    issue,
    owner,
    parse_record,
    registration,
    transfer,
)
from components.nixl_connect import connector as connector_module
from components.nixl_connect import core as core_module
from components.nixl_connect.core import Core
from components.nixl_connect.record import RdmaMetadata
from components.runtime.connector import open_connector

from .harness import Remote, at_rest, pattern, until

SIZE = 65536


def core_of(connector: Connector) -> Core:
    assert connector._pump.core is not None
    return connector._pump.core


class Fails:
    """Raises at the n-th call (the first is 0), and works before and after."""

    def __init__(self, works: Callable[..., Any], error: type[BaseException], at: int = 0) -> None:
        self._works, self._error, self._left = works, error, at
        self.failed = False

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        self._left -= 1
        if self._left == -1:
            self.failed = True
            raise self._error("injected")
        return self._works(*arguments, **named)


Place = tuple[Callable[[Core], Any], str, int]
EXPOSING: dict[str, Place] = {
    "register": (lambda core: core.agent._nixl, "register_memory", 0),
    "register the second": (lambda core: core.agent._nixl, "register_memory", 1),
    "watch the owner": (lambda core: registration.weakref, "finalize", 0),
    "metadata": (lambda core: core.agent._nixl, "get_partial_agent_metadata", 0),
    "describe": (lambda core: issue.SerializedDescriptor, "model_construct", 1),
    "seal": (lambda core: RdmaMetadata, "sealed", 0),
    "tell": (lambda core: nc.ReadableOperation, "expose_as", 0),
    "exposure": (lambda core: connector_module, "Exposure", 0),
    "arm": (lambda core: core.leases, "_at", 0),
    "expose": (lambda core: core.leases, "expose", 0),
}
BEGINNING: dict[str, Place] = {
    "load": (lambda core: core.agent._nixl, "add_remote_agent", 0),
    "remember": (lambda core: core.peers, "_remember", 0),
    "register": (lambda core: core.agent._nixl, "register_memory", 0),
    "register the second": (lambda core: core.agent._nixl, "register_memory", 1),
    "transfer": (lambda core: transfer, "Transfer", 0),
    "deadline": (lambda core: core.transfers, "_at", 0),
    "claim": (lambda core: core.agent._nixl, "send_notif", 0),
    "say again": (lambda core: core.transfers, "_at", 1),
    "parts": (lambda core: transfer, "parts", 0),
    "spans": (lambda core: transfer, "spans", 0),
    "prepare": (lambda core: core.agent._nixl, "initialize_xfer", 0),
    "post": (lambda core: core.agent._nixl, "transfer", 0),
    "look": (lambda core: core.transfers, "_look", 0),
    "check": (lambda core: core.agent._nixl, "check_xfer_state", 0),
}


def inject(monkeypatch: pytest.MonkeyPatch, core: Core, place: Place, error: type[BaseException]) -> Fails:
    find, name, at = place
    where = find(core)
    fails = Fails(getattr(where, name), error, at)
    if isinstance(where, type) and not isinstance(vars(where).get(name), classmethod | type(None)):
        monkeypatch.setattr(where, name, lambda *arguments, **named: fails(*arguments, **named))
    else:
        monkeypatch.setattr(where, name, fails)
    return fails


@pytest.fixture
def unlogged(connector: Connector, monkeypatch: pytest.MonkeyPatch) -> None:
    """pytest keeps what is logged, with its frames, and so the memory that is to be given back."""
    for module in (connector_module, core_module, owner, transfer):
        monkeypatch.setattr(module.logger, "disabled", True)


@pytest.mark.usefixtures("unlogged")
@pytest.mark.parametrize("error", [MemoryError, OverflowError, nc.BackendFailed])
@pytest.mark.parametrize("step", EXPOSING)
async def test_an_exposure_that_fails_gives_everything_back(
    connector: Connector, monkeypatch: pytest.MonkeyPatch, step: str, error: type[BaseException]
) -> None:
    pool = await connector.create_pool(1 << 20)
    slot = pool.allocate(SIZE)
    fresh = [np.zeros(SIZE, np.uint8) for _ in range(2)]
    before = connector.counters()
    fails = inject(monkeypatch, core_of(connector), EXPOSING[step], error)
    with pytest.raises(nc.BackendFailed, match="injected"):
        await connector.create_readable([slot.descriptor, *map(Descriptor, fresh)])
    monkeypatch.undo()
    assert fails.failed
    slot.release()
    del fresh
    gc.collect()  # of an error that is not ours the frames are kept, for who looks for the defect
    await until(lambda: connector.counters().registrations == before.registrations == 1)
    assert at_rest(connector.counters()) and pool.used == 0
    assert len(core_of(connector).leases) == 0
    operation = await connector.create_readable(Descriptor(np.zeros(SIZE, np.uint8)))
    assert operation.status is OperationStatus.INITIALIZED


@pytest.mark.usefixtures("unlogged")
@pytest.mark.parametrize("error", [MemoryError, OverflowError])
@pytest.mark.parametrize("staged", [False, True])
@pytest.mark.parametrize("step", BEGINNING)
async def test_a_transfer_that_fails_to_begin_gives_everything_back(
    connector: Connector, monkeypatch: pytest.MonkeyPatch, step: str, staged: bool, error: type[BaseException]
) -> None:
    """In a write: all of it at once, or posted by hand."""
    async with Connector("near") as near:
        pool = await connector.create_pool(1 << 20)
        slot = pool.allocate(SIZE)
        fresh = [np.zeros(SIZE, np.uint8) for _ in range(2)]
        buffers = [slot.descriptor, *map(Descriptor, fresh)]
        lent = [Descriptor(np.zeros(SIZE, np.uint8)) for _ in buffers]
        record = (await near.create_writable(lent)).metadata()
        inject(monkeypatch, core_of(connector), BEGINNING[step], error)
        operation = await connector.begin_write(buffers, record, staged=staged, deadline=20.0)
        slot.release()
        if staged:
            operation.post(range(len(buffers)))
        async with asyncio.timeout(5):
            try:
                await operation.wait_for_completion()
            except nc.TransferError:
                assert operation.status is OperationStatus.ERRORED
            else:  # somebody looked again, or nobody had to
                assert step in ("look", "check")
            await operation.wait_for_release()
        monkeypatch.undo()
        del buffers, fresh, operation
        gc.collect()
        await until(lambda: at_rest(connector.counters()) and connector.counters().registrations == 1)
        assert pool.used == 0 and len(core_of(connector).transfers) == 0
        again = (await near.create_writable(lent)).metadata()
        source = [Descriptor(pattern(SIZE, seed)) for seed in range(3)]
        await (await connector.begin_write(source, again)).wait_for_completion()


async def test_memory_that_cannot_be_unregistered_keeps_nobody_waiting(
    connector: Connector, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pool = await connector.create_pool(1 << 20)
    fails = inject(
        monkeypatch, core_of(connector), (lambda core: core.agent._nixl, "deregister_memory", 0), RuntimeError
    )
    slot, passing = pool.allocate(SIZE), np.zeros(SIZE, np.uint8)
    operation = await connector.create_readable([Descriptor(passing), slot.descriptor])
    slot.release()
    del passing
    operation.cancel()
    operation.buffers.clear()
    await operation.wait_for_release()
    await until(lambda: fails.failed)
    assert pool.used == 0 and "stay registered" in caplog.text
    assert connector.counters().registrations == 1


async def test_a_slot_released_once_too_often_ends_nothing_else(connector: Connector) -> None:
    """The application's mistake, while an operation holds the slot: it ended the thread."""
    pool = await connector.create_pool(1 << 20)
    slot = pool.allocate(SIZE)
    operation = await connector.create_readable(slot.descriptor)
    slot.release()
    slot.release()
    operation.cancel()
    await operation.wait_for_release()
    assert at_rest(connector.counters())
    await connector.start()


# NIXL, and its agent


async def fails_at_once(connector: Connector, record: str, words: str) -> None:
    """Each verb, again and again, and the way out."""
    target = Descriptor(np.zeros(SIZE, np.uint8))
    async with asyncio.timeout(20):
        for _ in range(2):
            with pytest.raises(nc.BackendFailed, match=words):
                async with await connector.begin_read(parse_record(record), target, deadline=2.0) as operation:
                    await operation.wait_for_completion()
            assert operation.status is OperationStatus.ERRORED
            await operation.wait_for_release()
            async with await connector.begin_read(parse_record(record), target, deadline=2.0):
                pass  # leaving it is what did not end
            for verb in (connector.start(), connector.create_readable(target), connector.create_pool(SIZE)):
                with pytest.raises(nc.BackendFailed, match=words):
                    await verb
        assert connector.counters() == nc.Counters()
        await connector.close()


BROKEN = {
    "of a library": "import ctypes; ctypes.CDLL('libnowhere.so.12')",
    "of a module": "import a_module_that_is_nowhere",
    "of sense": "raise RuntimeError('no driver')",
}


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Puts another build of NIXL before the real one: ``_api.py`` of that package has that text."""
    for name in [name for name in sys.modules if name.split(".")[0].startswith("nixl")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)

    def install(package: str, text: str) -> None:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
        (tmp_path / package / "_api.py").write_text(text)

    return install


@pytest.mark.parametrize("lack", BROKEN)
async def test_nixl_that_cannot_be_loaded_for_lack(
    lack: str, other: Remote, installed: Callable[[str, str], None]
) -> None:
    """Installed, and a library is missing: that ended the thread, and every wait was for ever."""
    record = await other.ask("expose", number=1, size=SIZE)
    for package in ("nixl", "nixl_cu13", "nixl_cu12"):
        installed(package, BROKEN[lack])
    words = {"of a library": "libnowhere.so.12", "of a module": "a_module_that_is_nowhere", "of sense": "no driver"}
    await fails_at_once(Connector(), record, rf"cannot be loaded.*{words[lack]}.*LD_LIBRARY_PATH")


async def test_a_broken_build_beside_a_whole_one(installed: Callable[[str, str], None]) -> None:
    installed("nixl_cu13", BROKEN["of a library"])
    async with Connector() as connector:
        await connector.start()


async def test_an_agent_that_cannot_be_made(other: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    """UCX refuses the settings: said with the settings, and the next connector is not made with them."""
    monkeypatch.delenv("UCX_TLS", raising=False)
    record = await other.ask("expose", number=1, size=SIZE)
    await fails_at_once(Connector(ucx={"TLS": "nowhere"}), record, "'UCX_TLS': 'nowhere'")
    assert "UCX_TLS" not in os.environ
    target = np.zeros(SIZE, np.uint8)
    async with Connector() as good:
        await (await good.begin_read(parse_record(record), Descriptor(target))).wait_for_completion()
    assert np.array_equal(target, pattern(SIZE, 1))


@pytest.mark.parametrize("error", [MemoryError, RuntimeError])
async def test_an_agent_for_which_there_is_no_memory(
    other: Remote, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def refuses(*_: object) -> None:
        raise error("injected")

    record = await other.ask("expose", number=1, size=SIZE)
    monkeypatch.setattr("components.nixl_connect.agent.load_nixl", refuses)
    with pytest.raises(nc.BackendFailed, match="injected"):
        await Connector().create_readable(Descriptor(np.zeros(SIZE, np.uint8)))
    async with Connector() as connector:
        operation = await connector.begin_read(parse_record(record), Descriptor(np.zeros(SIZE, np.uint8)), deadline=2.0)
        with pytest.raises(nc.BackendFailed, match="injected"):
            await operation.wait_for_completion()


# the thread


async def test_a_thread_that_fails_fails_all_that_wait_and_says_so(
    other: Remote, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[tuple[str, BaseException, bool]] = []
    waiting: list[Any] = []

    def hear(name: str, error: BaseException) -> None:
        heard.append((name, error, all(operation.status.is_terminal for operation in waiting)))

    connector = Connector("here", on_failure=hear)
    pool = await connector.create_pool(1 << 20)
    with pool.allocate(SIZE) as slot:
        waiting.append(await connector.create_readable(slot.descriptor))
        waiting.append(await connector.create_writable(slot.descriptor))
    record = parse_record(await other.ask("accept", number=1, sizes=[SIZE]))
    staged = await connector.begin_write(Descriptor(pattern(SIZE, 1)), record, staged=True)
    waiting.append(staged)
    await until(lambda: staged.status is OperationStatus.IN_PROGRESS)

    def breaks() -> bool:
        raise ValueError("a defect")

    core = core_of(connector)
    hold, goes_on = threading.Event(), threading.Event()
    assert connector._owner is not None
    connector._owner.submit(lambda: (hold.set(), goes_on.wait())[0])
    await asyncio.to_thread(hold.wait)
    core.poll = breaks  # type: ignore[method-assign]
    connector._owner.at(0.0, breaks)
    late = asyncio.create_task(connector.create_readable(Descriptor(np.zeros(64, np.uint8))))
    await asyncio.sleep(0)
    goes_on.set()
    for operation in waiting:
        with pytest.raises(nc.ConnectorClosed, match="a defect"):
            await operation.wait_for_completion()
        await operation.wait_for_release()
    with pytest.raises(nc.ConnectorClosed, match="a defect"):
        await (await late).wait_for_completion()  # exposed before the failure, or refused because of it
    await until(lambda: len(heard) == 1)
    assert heard[0][0] == "nixl-here" and isinstance(heard[0][1], ValueError) and heard[0][2]
    (said,) = [record for record in caplog.records if record.levelno == logging.CRITICAL]
    assert "nixl-here ended unexpectedly: ValueError: a defect" in said.message and said.exc_info is not None
    for verb in (
        connector.create_readable(Descriptor(np.zeros(64, np.uint8))),
        connector.begin_read(record, Descriptor(np.zeros(SIZE, np.uint8))),
        connector.start(),
    ):
        with pytest.raises((nc.ConnectorClosed, nc.BadRecord)):
            await verb
    assert pool.used == 0 and at_rest(connector.counters())
    with pytest.raises(nc.Cancelled):
        await other.ask("wait", number=1)  # the writer took its leave
    await connector.close()


async def test_a_process_hears_of_its_data_plane() -> None:
    reasons: list[str] = []
    with background.ends_process(reasons.append):
        async with open_connector(Topology(), "encode") as connector:
            await connector.start()
            core_of(connector).agent.notifications = None  # type: ignore[method-assign,assignment]
            await until(lambda: reasons != [])
    assert reasons == ["nixl-encode ended unexpectedly"]


async def test_a_word_that_cannot_be_acted_on_costs_nobody_else_anything(
    connector: Connector, other: Remote, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A defect met by one message ended the thread, and with it every transfer of the process."""
    operation = await connector.create_readable(Descriptor(pattern(SIZE, 8)))
    core = core_of(connector)
    fails = Fails(core.leases.claim, OverflowError)
    monkeypatch.setattr(core.leases, "claim", fails)
    ignored = connector.counters().ignored_notifications_total
    record = operation.metadata().model_dump_json()
    assert await other.ask("read", number=8, record=record, seed=8)  # the claim is sent again
    await operation.wait_for_completion()
    assert fails.failed and connector.counters().ignored_notifications_total == ignored + 1
    assert "a CLAIM from remote@" in caplog.text and "OverflowError: injected" in caplog.text


async def test_closing_says_where_a_thread_hangs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It was waited for, for ten seconds, and then forgotten."""
    monkeypatch.setattr(connector_module, "CLOSE_S", 0.05)
    monkeypatch.setattr(connector_module, "THREAD_S", 0.05)
    free = threading.Event()

    async def hanging() -> Connector:
        connector = Connector("stuck")
        await connector.start()
        begun = threading.Event()

        def a_call_that_hangs() -> None:
            begun.set()
            free.wait()

        assert connector._owner is not None and connector._owner.submit(a_call_that_hangs)
        await asyncio.to_thread(begun.wait)
        return connector

    connector = await hanging()
    with pytest.raises(nc.BackendFailed, match="has not ended"):
        await connector.close()
    assert "nixl-stuck has not ended" in caplog.text and "a_call_that_hangs" in caplog.text
    with pytest.raises(KeyError):
        async with await hanging() as second:
            raise KeyError
    free.set()
    monkeypatch.setattr(connector_module, "THREAD_S", 10.0)
    await connector.close()
    await second.close()


# what stays


async def test_a_closed_connector_leaves_nothing_though_its_memory_lives() -> None:
    """What watches the memory's owner held the agent: 10 to 15 file descriptors a connector."""
    kept = [np.zeros(SIZE, np.uint8) for _ in range(4)]
    operations: list[Any] = []

    async def use() -> None:
        async with Connector() as connector, Connector() as near:
            await Descriptor(kept[0]).register_memory(connector)
            for source, target in ((kept[0], kept[1]), (kept[2], kept[3])):
                readable = await connector.create_readable(Descriptor(source), readers=2)
                read = await near.begin_read(readable.metadata(), Descriptor(target))
                await read.wait_for_completion()
                operations.extend((readable, read))

    def open_files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    gc.collect()
    gc.disable()
    try:
        await use()
        before = open_files()
        for _ in range(3):
            await use()
            assert open_files() == before
    finally:
        gc.enable()


def test_a_finalizer_inside_submit_does_not_hang() -> None:
    """The garbage collector may run a finalizer, which hands in a task, while its thread is handing in another."""
    program = """
import sys
from components.nixl_connect.owner import OwnerThread
class Pump:
    def poll(self): return False
    def abandon(self, why): pass
    def patience(self): return 1.0, 0.05
owner = OwnerThread("x", Pump())
ran = []
def trace(frame, event, argument):
    if event == "line" and frame.f_code.co_name == "submit" and len(ran) == 0:
        ran.append("nested")
        owner.submit(lambda: ran.append("finalizer"))
    return trace
sys.settrace(trace)
with owner._lock:
    owner.submit(lambda: ran.append("task"))
sys.settrace(None)
owner.stop()
assert owner.join(5)
assert sorted(ran) == ["finalizer", "nested", "task"], ran
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)
