"""Random lives of exposed buffers and of the operations on them, between two real processes, against a model.

Hypothesis chooses what happens next: expose, renew, let expire, read, write part by part, cancel on either side, run
into a deadline, stop a process, close and open a connector. After each step both processes must agree with the model:
the status of every operation, and the counters. An operation that has ended keeps its end; bytes are right where it
completed, and untouched where it was cancelled before they were posted. In the end everything is back.

    TRIPTYCH_PROPERTY_EXAMPLES=500 pytest tests/nixl_connect/test_property.py     many more lives, other ones each time
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from components import nixl_connect as nc

from .harness import Remote

T = TypeVar("T")
EXAMPLES = os.environ.get("TRIPTYCH_PROPERTY_EXAMPLES")
LONG = 30.0
SHORT = 0.2
IN_TIME = 10.0
INITIALIZED, IN_PROGRESS, COMPLETE, CANCELLED, ERRORED = (status.name for status in list(nc.OperationStatus)[1:])
sides = st.integers(0, 1)
sizes = st.sampled_from([64, 4097, 65536, 300_000])
which = st.integers(0, 1 << 16)
"""Picks one of those that are there, whatever their number."""


@dataclass
class Exposed:
    """A passive operation that has not ended."""

    number: int
    side: int
    sizes: list[int]
    record: str
    readers: int | None = 1
    read: int = 0
    writing: Writing | None = None

    @property
    def status(self) -> str:
        return INITIALIZED if self.writing is None else IN_PROGRESS


@dataclass
class Writing:
    """A staged write that has not ended."""

    number: int
    into: Exposed
    posted: set[int] = field(default_factory=set)

    @property
    def side(self) -> int:
        return 1 - self.into.side


@dataclass
class Gone:
    """The record of an operation that has ended, and how another try to use it fails."""

    side: int
    kind: str
    record: str
    error: type[nc.TransferError]


class World:
    """The two processes, kept from one life to the next: to start them takes longer than to use them."""

    def __init__(self) -> None:
        self.runner = asyncio.Runner()
        self.numbers = iter(range(1, 1 << 30))
        self._remotes: list[Remote] = []

    def run(self, what: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(what)

    async def remotes(self) -> list[Remote]:
        if not self._remotes:
            self._remotes = [Remote(name, 16 << 20, {}) for name in ("left", "right")]
            await asyncio.gather(*(remote.ready() for remote in self._remotes))
        return self._remotes

    async def stop(self) -> None:
        remotes, self._remotes = self._remotes, []
        await asyncio.gather(*(remote.stop() for remote in remotes))


world: World


class Lives(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.remotes = world.run(world.remotes())
        self.exposed: list[Exposed] = []
        self.writing: list[Writing] = []
        self.gone: list[Gone] = []
        self.ended: list[tuple[int, int, str]] = []
        """(side, number, end)"""

    def ask(self, side: int, command: str, **arguments: Any) -> Any:
        return world.run(self.remotes[side].ask(command, **arguments))

    def fails(self, kind: type[nc.TransferError], side: int, command: str, **arguments: Any) -> None:
        try:
            self.ask(side, command, **arguments)
        except nc.TransferError as error:
            assert type(error) is kind, f"{command} {arguments}: {error!r}, expected {kind.__name__}"
        else:
            raise AssertionError(f"{command} {arguments} worked, expected {kind.__name__}")

    def until(self, condition: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + IN_TIME
        while not condition():
            assert time.monotonic() < end, what

    def end(self, one: Exposed | Writing, status: str, then: type[nc.TransferError] | None = None) -> None:
        """It has ended on its side; ``then`` is what its record is good for."""
        self.ended.append((one.side, one.number, status))
        if isinstance(one, Writing):
            self.writing.remove(one)
            one.into.writing = None
        else:
            self.exposed.remove(one)
            if then is not None:
                self.gone.append(Gone(one.side, "write" if one.readers == 0 else "read", one.record, then))

    def expose_one(self, side: int, kind: str, parts: list[int], readers: int | None, lease: float) -> Exposed:
        number = next(world.numbers)
        if kind == "read":
            record = self.ask(side, "expose", number=number, size=parts[0], readers=readers, lease=lease)
            one = Exposed(number, side, parts[:1], record, readers)
        else:
            record = self.ask(side, "accept", number=number, sizes=parts, lease=lease)
            one = Exposed(number, side, parts, record, 0)
        return one

    # what the exposing side does

    @precondition(lambda self: len(self.exposed) < 6)
    @rule(
        side=sides,
        kind=st.sampled_from(["read", "write"]),
        parts=st.lists(sizes, min_size=1, max_size=3),
        readers=st.sampled_from([1, 2, 3, None]),
    )
    def expose(self, side: int, kind: str, parts: list[int], readers: int | None) -> None:
        self.exposed.append(self.expose_one(side, kind, parts, readers, LONG))

    @rule(side=sides, kind=st.sampled_from(["read", "write"]), readers=st.sampled_from([1, 2, None]), size=sizes)
    def expose_and_let_expire(self, side: int, kind: str, readers: int | None, size: int) -> None:
        one = self.expose_one(side, kind, [size], readers, 0.05)
        self.exposed.append(one)
        self.fails(nc.LeaseExpired, side, "wait", number=one.number)
        self.end(one, ERRORED, nc.LeaseExpired)

    @precondition(lambda self: len(self.exposed) < 6)
    @rule(side=sides, kind=st.sampled_from(["read", "write"]), size=sizes)
    def renew(self, side: int, kind: str, size: int) -> None:
        start = time.monotonic()
        one = self.expose_one(side, kind, [size], 1, SHORT)
        self.exposed.append(one)
        self.ask(side, "renew", number=one.number, seconds=LONG)
        self.ask(side, "settle")
        if time.monotonic() - start < SHORT:
            world.run(asyncio.sleep(SHORT - (time.monotonic() - start) + 0.02))
            assert self.ask(side, "status", number=one.number) == INITIALIZED
        else:  # too busy a machine to have renewed it in time for sure
            self.ask(side, "cancel", number=one.number)
            self.ask(side, "settle")
            self.end(one, self.ask(side, "status", number=one.number))

    @precondition(lambda self: self.exposed)
    @rule(pick=which)
    def the_exposer_cancels(self, pick: int) -> None:
        one = self.exposed[pick % len(self.exposed)]
        writing = one.writing
        self.ask(one.side, "cancel", number=one.number)
        self.fails(nc.Cancelled, one.side, "wait", number=one.number)
        if writing is not None:
            self.fails(nc.Cancelled, writing.side, "wait", number=writing.number)
            self.end(writing, CANCELLED)
            self.ask(one.side, "wait_released", number=one.number)
            self.nothing_but_what_was_posted(one, writing)
        self.end(one, CANCELLED, nc.Cancelled)

    # reads

    @precondition(lambda self: any(one.readers != 0 for one in self.exposed))
    @rule(pick=which, at_once=st.integers(1, 4))
    def read(self, pick: int, at_once: int) -> None:
        """Several at once: as many as there are readers left get the bytes, the others are told that it is over."""
        readable = [one for one in self.exposed if one.readers != 0]
        one = readable[pick % len(readable)]
        numbers = [next(world.numbers) for _ in range(at_once)]

        async def read_all() -> list[Any]:
            reader = self.remotes[1 - one.side]
            asked = [reader.ask("read", number=n, record=one.record, seed=one.number) for n in numbers]
            return await asyncio.gather(*asked, return_exceptions=True)

        results = world.run(read_all())
        left = at_once if one.readers is None else one.readers - one.read
        good = min(left, at_once)
        assert results.count(True) == good, results
        assert sum(type(result) is nc.RecordConsumed for result in results) == at_once - good, results
        for number, result in zip(numbers, results, strict=True):
            self.ended.append((1 - one.side, number, COMPLETE if result is True else ERRORED))
        one.read += good
        if one.readers is not None and one.read == one.readers:
            assert self.ask(one.side, "wait", number=one.number) == COMPLETE
            self.end(one, COMPLETE, nc.RecordConsumed)
        else:  # the last word of it is on its way
            self.until(lambda: self.ask(one.side, "status", number=one.number) == INITIALIZED, "a claim was not freed")

    @rule(side=sides, size=sizes, who=st.sampled_from(["reader", "exposer"]))
    def cancel_a_read_before_its_post(self, side: int, size: int, who: str) -> None:
        """With so short a lease nothing is read before the grant; and that does not come."""
        one = self.expose_one(side, "read", [size], 1, 0.9)
        number = next(world.numbers)
        exposer, reader = self.remotes[side], self.remotes[1 - side]
        world.run(exposer.halt_before("grant"))
        self.ask(1 - side, "begin_read", number=number, record=one.record, seed=0)
        world.run(exposer.until_halted())
        if who == "reader":
            self.ask(1 - side, "cancel", number=number)
            self.fails(nc.Cancelled, 1 - side, "wait", number=number)
        else:
            self.ask(side, "cancel", number=one.number)
            # Its word must be there with the grant, or the grant is used: that is a cancel after the post.
            world.run(reader.halt_before("post"))
        self.ask(side, "go")
        if who == "exposer":
            world.run(reader.until_halted())
            assert self.ask(1 - side, "touched", number=number) == [False]
            self.ask(1 - side, "go")
            world.run(self.ended_somehow(1 - side, number, nc.Cancelled))
        else:
            assert self.ask(1 - side, "touched", number=number) == [False]
        self.fails(nc.Cancelled, side, "wait", number=one.number)
        self.ended += [(side, one.number, CANCELLED), (1 - side, number, self.ask(1 - side, "status", number=number))]
        for where, which_one in ((side, one.number), (1 - side, number)):
            self.ask(where, "wait_released", number=which_one)

    async def ended_somehow(self, side: int, number: int, error: type[nc.TransferError]) -> None:
        try:
            assert await self.remotes[side].ask("wait", number=number) == COMPLETE
        except nc.TransferError as caught:
            assert type(caught) is error

    @rule(side=sides, size=sizes, step=st.sampled_from(["prepare", "post", "done"]))
    def the_exposer_cancels_a_read_in_flight(self, side: int, size: int, step: str) -> None:
        """The reader is right before that step. It may finish, with the right bytes, or learn that it is over."""
        before = self.expose_one(side, "read", [64], 1, LONG)  # a first message needs its sender to go on
        assert self.ask(1 - side, "read", number=before.number, record=before.record, seed=before.number)
        assert self.ask(side, "wait", number=before.number) == COMPLETE
        self.ended += [(0, before.number, COMPLETE), (1, before.number, COMPLETE)]
        one = self.expose_one(side, "read", [size], 1, LONG)
        number = next(world.numbers)
        exposer, reader = self.remotes[side], self.remotes[1 - side]
        world.run(reader.halt_before(step))
        self.ask(1 - side, "begin_read", number=number, record=one.record, seed=0)
        world.run(reader.until_halted())
        self.until(lambda: self.ask(side, "status", number=one.number) == IN_PROGRESS, "no claim")
        self.ask(side, "cancel", number=one.number)
        self.fails(nc.Cancelled, side, "wait", number=one.number)
        assert self.ask(side, "counters")["quarantined"] == 1, "the reader may still read"
        self.ask(1 - side, "go")
        world.run(self.ended_somehow(1 - side, number, nc.Cancelled))
        status = self.ask(1 - side, "status", number=number)
        assert status == COMPLETE or step != "done"
        world.run(exposer.ask("wait_released", number=one.number))
        self.ask(1 - side, "wait_released", number=number)
        assert self.ask(1 - side, "written", number=number, seed=one.number) or status != COMPLETE
        self.ended += [(side, one.number, CANCELLED), (1 - side, number, status)]

    # writes

    @precondition(lambda self: any(one.readers == 0 for one in self.exposed))
    @rule(pick=which)
    def write(self, pick: int) -> None:
        """The first gets the memory; a second one is told so."""
        writable = [one for one in self.exposed if one.readers == 0]
        one = writable[pick % len(writable)]
        number = next(world.numbers)
        options = {"number": number, "record": one.record, "seed": one.number, "staged": True, "deadline": 60.0}
        self.ask(1 - one.side, "begin_write", **options)
        if one.writing is not None:
            self.fails(nc.RecordConsumed, 1 - one.side, "wait", number=number)
            self.ended.append((1 - one.side, number, ERRORED))
            return
        self.until(lambda: self.ask(1 - one.side, "status", number=number) == IN_PROGRESS, "no grant")
        one.writing = Writing(number, one)
        self.writing.append(one.writing)

    @precondition(lambda self: self.writing)
    @rule(pick=which, indices=st.lists(st.integers(0, 2), min_size=1, max_size=4))
    def post(self, pick: int, indices: list[int]) -> None:
        writing = self.writing[pick % len(self.writing)]
        into = writing.into
        indices = [index % len(into.sizes) for index in indices]
        self.ask(writing.side, "post", number=writing.number, indices=indices)
        writing.posted.update(indices)
        if len(writing.posted) == len(into.sizes):
            assert self.ask(writing.side, "wait", number=writing.number) == COMPLETE
            assert self.ask(into.side, "wait", number=into.number) == COMPLETE
            assert self.ask(into.side, "written", number=into.number, seed=into.number)
            self.end(writing, COMPLETE)
            self.end(into, COMPLETE, nc.RecordConsumed)

    @precondition(lambda self: self.writing)
    @rule(pick=which)
    def the_writer_cancels(self, pick: int) -> None:
        writing = self.writing[pick % len(self.writing)]
        into = writing.into
        self.ask(writing.side, "cancel", number=writing.number)
        self.fails(nc.Cancelled, writing.side, "wait", number=writing.number)
        self.fails(nc.Cancelled, into.side, "wait", number=into.number)
        self.nothing_but_what_was_posted(into, writing)
        self.end(writing, CANCELLED)
        self.end(into, CANCELLED, nc.Cancelled)

    def nothing_but_what_was_posted(self, into: Exposed, writing: Writing) -> None:
        touched = self.ask(into.side, "touched", number=into.number)
        assert not any(touched[index] for index in range(len(into.sizes)) if index not in writing.posted), touched

    @rule(side=sides, parts=st.lists(sizes, min_size=1, max_size=3))
    def a_deadline_passes(self, side: int, parts: list[int]) -> None:
        one = self.expose_one(side, "write", parts, 0, LONG)
        number = next(world.numbers)
        options = {"number": number, "record": one.record, "seed": 1, "staged": True, "deadline": 0.15}
        self.ask(1 - side, "begin_write", **options)
        self.fails(nc.DeadlineExceeded, 1 - side, "wait", number=number)
        self.fails(nc.DeadlineExceeded, side, "wait", number=one.number)
        assert not any(self.ask(side, "touched", number=one.number))
        self.ended += [(side, one.number, ERRORED), (1 - side, number, ERRORED)]

    @precondition(lambda self: self.writing)
    @rule(pick=which)
    def quarantine(self, pick: int) -> None:
        """A stopped writer may write when it wakes: the operation ends at once, the memory comes back after it."""
        writing = self.writing[pick % len(self.writing)]
        into = writing.into
        used = self.ask(into.side, "counters")["pool_used_bytes"]
        self.remotes[writing.side].signal(signal.SIGSTOP)
        try:
            self.ask(into.side, "cancel", number=into.number)
            self.fails(nc.Cancelled, into.side, "wait", number=into.number)
            counters = self.ask(into.side, "counters")
            assert counters["quarantined"] == 1 and counters["pool_used_bytes"] == used
        finally:
            self.remotes[writing.side].signal(signal.SIGCONT)
        self.ask(into.side, "wait_released", number=into.number)
        assert self.ask(into.side, "counters")["quarantined"] == 0
        self.fails(nc.Cancelled, writing.side, "wait", number=writing.number)
        self.end(writing, CANCELLED)
        self.end(into, CANCELLED, nc.Cancelled)

    # afterwards

    @precondition(lambda self: self.gone)
    @rule(pick=which)
    def a_claim_that_comes_too_late_is_refused(self, pick: int) -> None:
        gone = self.gone[pick % len(self.gone)]
        number = next(world.numbers)
        self.ask(1 - gone.side, f"begin_{gone.kind}", number=number, record=gone.record, seed=1)
        self.fails(gone.error, 1 - gone.side, "wait", number=number)
        status = CANCELLED if gone.error is nc.Cancelled else ERRORED
        self.ended.append((1 - gone.side, number, status))

    @precondition(lambda self: self.exposed)
    @rule(side=sides)
    def close_with_operations_in_flight(self, side: int) -> None:
        self.check_ends()
        self.ask(side, "close")
        for one in list(self.exposed):
            writing = one.writing
            ours, theirs = (one, writing) if one.side == side else (writing, one)
            if ours is None:
                continue  # the other side's, and nobody of this side uses it
            self.fails(nc.ConnectorClosed, side, "wait", number=ours.number)
            if theirs is not None:
                self.fails(nc.Cancelled, 1 - side, "wait", number=theirs.number)
            if writing is not None:
                self.end(writing, CANCELLED)
            self.end(one, CANCELLED, nc.Cancelled if one.side != side else None)
        self.gone = [gone for gone in self.gone if gone.side != side]
        self.check_ends()
        self.forget(side)
        self.ask(side, "reopen")

    @invariant()
    def both_sides_agree_with_the_model(self) -> None:
        for side in range(2):
            expected = {number: end for where, number, end in self.ended if where == side}
            expected |= {one.number: one.status for one in self.exposed if one.side == side}
            expected |= {one.number: IN_PROGRESS for one in self.writing if one.side == side}
            assert self.ask(side, "statuses") == expected
            mine = [one for one in self.exposed if one.side == side]
            want = {"leases": len(mine), "quarantined": 0, "handles": 0, "registrations": 1}
            want["in_flight"] = sum(one.side == side for one in self.writing)
            self.until(lambda s=side, w=want: w.items() <= self.ask(s, "counters").items(), f"{want} did not come")

    def check_ends(self) -> None:
        """What has ended stays as it ended."""
        for side in range(2):
            statuses = self.ask(side, "statuses")
            for where, number, end in self.ended:
                assert where != side or statuses[number] == end

    def forget(self, side: int) -> None:
        for where, number, end in self.ended:
            if where == side:
                assert self.ask(side, "forget", number=number) == end
        self.ended = [one for one in self.ended if one[0] != side]

    def teardown(self) -> None:
        try:
            while self.writing:
                self.the_writer_cancels(0)
            while self.exposed:
                self.the_exposer_cancels(0)
            for side in range(2):
                self.forget(side)
                rest = {"leases": 0, "quarantined": 0, "in_flight": 0, "handles": 0, "pool_used_bytes": 0}
                rest |= {"registrations": 1, "pool_bytes": 16 << 20}
                counters = self.ask(side, "counters")
                assert rest.items() <= counters.items(), counters
        except BaseException:
            world.run(world.stop())  # the next life begins with processes that nothing happened to
            raise


def test_operations_live_as_the_model_says() -> None:
    global world
    world = World()
    try:
        run_state_machine_as_test(
            Lives,
            settings=settings(
                max_examples=int(EXAMPLES or 8),
                stateful_step_count=20,
                deadline=None,
                derandomize=EXAMPLES is None,
                database=None,
                report_multiple_bugs=False,
                phases=list(Phase) if EXAMPLES else [Phase.generate],  # to make a failure small takes minutes
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        world.run(world.stop())
        world.runner.close()
