"""The connection to NATS: what is sent leaves in order, and what cannot leave waits for the reconnect."""

from __future__ import annotations

import asyncio
import logging
import re
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress

from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.errors import UnexpectedEOF

from components import aio, background
from components.messaging.addresses import new_inbox
from components.messaging.client import NatsClient
from components.messaging.seldom import Seldom

log = logging.getLogger(__name__)

_SUBJECT = re.compile(r"[^\s.*>]+(\.[^\s.*>]+)*")
_RECONNECT_SECONDS = 0.1
# Frames waiting in nats-py must never reach this: above it, publish waits, and a wait inside it swallows cancellation.
_PENDING_BYTES = 1 << 30


class Wire:
    """One NATS connection and its inbox.

    ``send`` never waits: one task hands everything to NATS, so no request can be interrupted in the middle of a
    publish, and a burst leaves as one write.
    """

    def __init__(self, client: NatsClient) -> None:
        self.inbox = new_inbox()
        self.on_reconnect: Callable[[], None] = lambda: None
        self._client = client
        self._queue: deque[tuple[str, bytes, str, dict[str, str] | None]] = deque()
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._up = asyncio.Event()
        self._closing = False
        self._complaints = Seldom(log)
        self._sender = background.task(self._send_queued(), "messaging-sender")

    @classmethod
    async def connect(cls, servers: Sequence[str], *, name: str, wait: float) -> Wire:
        """Waits up to ``wait`` seconds for a server, then raises ``ConnectionError``; reconnects for ever later."""
        client = NatsClient()
        async with AsyncExitStack() as stack:
            wire = cls(client)
            stack.push_async_callback(wire.close)
            try:
                async with asyncio.timeout(wait):
                    await client.connect(
                        servers=list(servers),
                        name=name,
                        max_reconnect_attempts=-1,
                        reconnect_time_wait=_RECONNECT_SECONDS,  # type: ignore[arg-type]  # used as a float
                        # A half-open connection (a node that lost power) is noticed after three of these.
                        ping_interval=5,
                        pending_size=_PENDING_BYTES,
                        error_cb=wire._on_error,
                        disconnected_cb=wire._on_disconnected,
                        reconnected_cb=wire._on_reconnected,
                        closed_cb=wire._on_closed,
                    )
            except TimeoutError:
                # Without the password that a URL may hold.
                places = ", ".join(re.sub("//.*@", "//", server) for server in servers)
                reason = f": {client.last_error}" if client.last_error else ""
                raise ConnectionError(f"no NATS server answers at {places} (waited {wait:g} s{reason})") from None
            stack.pop_all()
        wire._up.set()
        return wire

    @property
    def up(self) -> bool:
        return self._up.is_set()

    @property
    def max_payload(self) -> int:
        """Bytes that one message may have, headers included."""
        return self._client.max_payload

    async def subscribe(self, subject: str, handler: Callable[[Msg], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
        """Calls ``handler``, which must not wait, for each message; returns what ends the subscription."""
        subscription = await self._client.subscribe(subject, cb=handler)
        await self._arrived()
        # Drain, not unsubscribe: what the server has sent already is still handled.
        return subscription.drain

    def send(self, subject: str, payload: bytes, *, reply: str = "", headers: dict[str, str] | None = None) -> None:
        """Queue one message."""
        self._queue.append((subject, payload, reply, headers))
        self._wake.set()
        self._idle.clear()

    async def flush(self) -> None:
        """Waits until the server has everything queued so far, or for two seconds: it may be away."""
        with suppress(TimeoutError, NatsError):
            async with asyncio.timeout(2.0):
                if self._queue:
                    await self._idle.wait()
                await self._arrived()

    async def _arrived(self) -> None:
        """Returns once the server has read everything that the client was given."""
        # nats-py writes a ping ahead of what it still buffers, so the answer to the first says only that the buffer
        # has been written; the second ping comes after it.
        await self._client.flush()
        await self._client.flush()

    async def close(self) -> None:
        self._closing = True
        self._up.clear()
        await aio.end(self._sender)
        await self._client.close()

    async def _send_queued(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._queue:
                await self._up.wait()
                subject, payload, reply, headers = self._queue[0]
                try:
                    await self._client.publish(subject, payload, reply, headers)
                except (NatsError, ValueError) as error:
                    # No message is worth the sender's life: what must arrive is asked for again. (A ValueError is
                    # text that cannot be encoded, in a header.)
                    self._complaints.warning("message for %s not sent: %r", subject[:100], error)
                self._queue.popleft()
            self._idle.set()

    async def _on_error(self, error: Exception) -> None:
        # nats-py reports each failed attempt to reconnect here; the two callbacks below say what matters of that.
        if isinstance(error, OSError | UnexpectedEOF):
            log.debug("nats: %r", error)
        elif isinstance(error, NatsError):
            self._complaints.warning("nats: %r", error)
        else:  # A subscription's handler raised it, and was given the next message: a defect of ours.
            log.error("a message was not handled: %r", error, exc_info=error)

    async def _on_disconnected(self) -> None:
        if self._up.is_set():
            log.warning("lost the connection to NATS, reconnecting")
        self._up.clear()

    async def _on_closed(self) -> None:
        if not self._closing:
            reason = f"NATS closed the connection for good: {self._client.last_error}"
            background.fail("the connection to NATS", ConnectionError(reason))

    async def _on_reconnected(self) -> None:
        log.warning("connected to NATS again")
        self._up.set()
        self.on_reconnect()


def check_subject(subject: str) -> None:
    """Raises ``ValueError`` for a subject that cannot be published to."""
    if not _SUBJECT.fullmatch(subject):
        raise ValueError(f"not a NATS subject: {subject!r}")
