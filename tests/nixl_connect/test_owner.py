"""The thread that owns NIXL, with a pump that only counts: no wait of it may outlast its time."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from components.nixl_connect import ConnectorClosed
from components.nixl_connect.owner import OwnerThread

from .harness import until


class Beats:
    """Looks as often as while a transfer is in flight."""

    def __init__(self, pause: float) -> None:
        self.polls = 0
        self._pause = pause

    def poll(self) -> bool:
        self.polls += 1
        return False

    def abandon(self, why: str) -> None: ...

    def patience(self) -> tuple[float, float]:
        return 1.0, self._pause


def test_a_short_wait_ends() -> None:
    """SimpleQueue.get, on Python 3.11 and 3.12, waited for ever after some hundreds of these: a transfer hung for
    minutes, whatever its deadline."""
    pump = Beats(1e-6)
    owner = OwnerThread("beats", pump)
    for _ in range(5000):
        ran = threading.Event()
        assert owner.submit(ran.set)
        assert ran.wait(5)
        before, end = pump.polls, time.monotonic() + 5
        while pump.polls < before + 3:
            assert time.monotonic() < end, "it sleeps and nobody will wake it"
            time.sleep(0)
    owner.stop()
    assert owner.join(5)


async def test_a_task_ends_a_long_wait() -> None:
    pump = Beats(30.0)
    owner = OwnerThread("beats", pump)
    try:
        for number in range(50):
            async with asyncio.timeout(5):
                assert await owner.call(lambda number=number: number) == number  # type: ignore[misc]
    finally:
        owner.stop()
    assert owner.join(5)
    with_it = owner.submit(lambda: None)
    assert not with_it


async def test_outcomes_of_one_turn_wake_the_loop_once() -> None:
    owner = OwnerThread("beats", Beats(30.0))
    loop = asyncio.get_running_loop()
    wakes, heard = 0, []
    wake = loop.call_soon_threadsafe

    def counted(*arguments: object) -> object:
        nonlocal wakes
        wakes += 1
        return wake(*arguments)  # type: ignore[arg-type]

    loop.call_soon_threadsafe = counted  # type: ignore[method-assign,assignment]
    try:

        def turn() -> None:
            for number in range(3):
                owner.deliver(loop, lambda number=number: heard.append(number))  # type: ignore[misc]
            owner.after(lambda: owner.deliver(loop, lambda: heard.append("later")))

        owner.submit(turn)
        await until(lambda: len(heard) == 4)
    finally:
        del loop.call_soon_threadsafe
        owner.stop()
    assert heard == [0, 1, 2, "later"]
    assert wakes == 2
    assert owner.join(5)


async def test_what_a_task_raises_is_its_own() -> None:
    """A task "must not raise": one that did ended the thread, and everything else waited for ever."""
    owner = OwnerThread("beats", Beats(30.0))
    failed: list[Exception] = []

    def breaks() -> None:
        raise KeyError("a defect")

    assert owner.submit(breaks, failed.append) and owner.submit(breaks)
    owner.submit(lambda: owner.after(breaks))
    loop = asyncio.get_running_loop()
    owner.submit(lambda: owner.deliver(loop, breaks))
    with pytest.raises(KeyError):
        await owner.call(breaks)
    assert await owner.call(lambda: 1) == 1
    assert [type(error) for error in failed] == [KeyError]
    owner.stop()
    assert owner.join(5) and owner.failure is None


async def test_what_ends_the_thread_fails_what_was_handed_in() -> None:
    told: list[str] = []
    owner = OwnerThread("beats", Beats(30.0), lambda name, error: told.append(f"{name}: {error!r}"))
    held, failed, begun = threading.Event(), list[Exception](), threading.Event()

    def hold() -> None:
        begun.set()
        held.wait()
        owner.at(0.0, ends)

    def ends() -> None:
        owner.submit(lambda: None, failed.append)
        raise SystemExit("whatever it is")

    owner.submit(hold)
    begun.wait()
    held.set()
    assert owner.join(5)
    assert told == ["nixl-beats: SystemExit('whatever it is')"]
    assert [type(error) for error in failed] == [ConnectorClosed] and "whatever it is" in str(failed[0])
    assert not owner.submit(lambda: None)
    with pytest.raises(ConnectorClosed, match="whatever it is"):
        await owner.call(lambda: None)
