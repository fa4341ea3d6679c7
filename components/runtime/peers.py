"""The instances of another role: which one gets the next request, and what happens when one fails."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import aclosing, asynccontextmanager
from types import UnionType
from typing import Any, TypeVar, overload

from components.discovery import View
from components.messaging import Bus, CallError, Context, NobodyListens
from components.protocol import ErrorCode, Instance, Role

log = logging.getLogger(__name__)

T = TypeVar("T")

_TRIES = 3
_SUSPECT_SECONDS = 10.0
"""Longer than a lease: by then discovery has removed a dead instance, so one that is still there is alive."""

_GONE = (ErrorCode.PEER_LOST, ErrorCode.UNAVAILABLE)


class Peers:
    """A live view of one role; made by ``Panel.peers``."""

    def __init__(self, bus: Bus, role: Role, view: View[Instance]) -> None:
        self.role = role
        self._bus = bus
        self._view = view
        self._outstanding: Counter[str] = Counter()
        self._suspects: dict[str, float] = {}
        self._turn = itertools.count()

    @property
    def instances(self) -> list[Instance]:
        """Those that are registered, dead ones among them until their lease ends."""
        return list(self._view.instances.values())

    @property
    def ready(self) -> bool:
        """Whether a request has somewhere to go."""
        return any(not self._suspected(each.id) for each in self.instances)

    async def until_ready(self) -> None:
        """Returns once ``ready`` holds because an instance registered."""
        while not self.ready:
            await self._view.changed()

    def drop(self, id: str) -> None:
        """It did not answer: prefer any other instance until discovery has had time to remove it."""
        now = asyncio.get_running_loop().time()
        self._suspects = {each: until for each, until in self._suspects.items() if until > now}
        self._suspects[id] = now + _SUSPECT_SECONDS

    @asynccontextmanager
    async def pick(self, exclude: Collection[str] = ()) -> AsyncIterator[Instance]:
        """The instance with the fewest requests of ours, in turn among equals; counted for the block.

        Raises ``CallError`` ``unavailable`` if there is none.
        """
        instance = self._choose(exclude)
        self._outstanding[instance.id] += 1
        try:
            yield instance
        finally:
            self._outstanding[instance.id] -= 1
            if not self._outstanding[instance.id]:
                del self._outstanding[instance.id]

    @overload
    async def call(self, operation: str, request: object, *, reply: type[T], context: Context) -> T: ...

    @overload
    async def call(self, operation: str, request: object, *, reply: UnionType, context: Context) -> Any: ...

    async def call(self, operation: str, request: object, *, reply: Any, context: Context) -> Any:
        """One answer from one of them; from another one after an error that it may not have."""
        async with aclosing(self.stream(operation, request, reply=reply, context=context)) as items:
            async for item in items:
                return item
        raise CallError(ErrorCode.INTERNAL, f"{operation} ended without an answer", stage=self.role)

    @overload
    def stream(
        self, operation: str, request: object, *, reply: type[T], context: Context
    ) -> AsyncGenerator[T, None]: ...

    @overload
    def stream(
        self, operation: str, request: object, *, reply: UnionType, context: Context
    ) -> AsyncGenerator[Any, None]: ...

    async def stream(
        self, operation: str, request: object, *, reply: Any, context: Context
    ) -> AsyncGenerator[Any, None]:
        """The answer of one of them, item by item; from another one if the first fails before its first item."""
        tried: dict[str, CallError] = {}
        while True:
            begun = False
            async with self.pick(tried) as instance:
                try:
                    async with self._bus.stream(
                        instance.subject, operation, request, reply=reply, context=context, stage=self.role
                    ) as items:
                        async for item in items:
                            begun = True
                            yield item
                    return
                except CallError as error:
                    tried[instance.id] = error
                    if not self._another_may_help(instance, error, tried) or begun:
                        raise _telling(tried) from None
                    log.info("%s failed, trying another: %s", instance.id, error)

    async def attempt(self, call: Callable[[Instance], Awaitable[T]]) -> T:
        """What ``call`` makes of one of them; of another one after an error that it may not have.

        For an exchange of more than one message; ``call`` must leave nothing behind when it raises.
        """
        tried: dict[str, CallError] = {}
        while True:
            async with self.pick(tried) as instance:
                try:
                    return await call(instance)
                except CallError as error:
                    tried[instance.id] = error
                    if not self._another_may_help(instance, error, tried):
                        raise _telling(tried) from None
                    log.info("%s failed, trying another: %s", instance.id, error)

    def _another_may_help(self, instance: Instance, error: CallError, tried: Mapping[str, CallError]) -> bool:
        # An error from further down was already tried elsewhere by the panel next to it: trying again at every level
        # would multiply the tries. Without a stage it is from this side of the exchange, a failed transfer say.
        if error.stage not in ("", self.role):
            return False
        if error.code in _GONE:
            if not error.stage:  # not the other side is gone, this one is
                return False
            self.drop(instance.id)
        # Entries of the dead cost no tries, however many there are: each is passed over once.
        tries = sum(not isinstance(each, NobodyListens) for each in tried.values())
        return error.retryable and tries < _TRIES and any(each.id not in tried for each in self.instances)

    def _choose(self, exclude: Collection[str]) -> Instance:
        instances = [each for each in self.instances if each.id not in exclude]
        # A suspect is better than nobody: if it is dead, NATS says so at once.
        candidates = [each for each in instances if not self._suspected(each.id)] or instances
        if not candidates:
            raise CallError(ErrorCode.UNAVAILABLE, f"no {self.role} instance is there", stage=self.role, retryable=True)
        fewest = min(self._outstanding[each.id] for each in candidates)
        equals = [each for each in candidates if self._outstanding[each.id] == fewest]
        return equals[next(self._turn) % len(equals)]

    def _suspected(self, id: str) -> bool:
        return self._suspects.get(id, 0.0) > asyncio.get_running_loop().time()


def _telling(tried: Mapping[str, CallError]) -> CallError:
    """The last error; one of an instance that is there says more than that another is not."""
    errors = list(tried.values())
    return next((each for each in reversed(errors) if not isinstance(each, NobodyListens)), errors[-1])
