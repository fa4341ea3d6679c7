"""nats-py's client, mended where one message or one surprise would silence a process that goes on looking well."""

from __future__ import annotations

import logging

from nats.aio.client import Client
from nats.errors import Error, UnexpectedEOF
from nats.protocol.parser import PERMISSIONS_ERR

from components import background
from components.messaging.seldom import Seldom

log = logging.getLogger(__name__)


class NatsClient(Client):
    """Only methods that nats-py 2.16 calls itself are replaced; each says what would happen without."""

    def __init__(self) -> None:
        super().__init__()
        self._unreadable = Seldom(log)

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        """A subject, reply or status line that is not UTF-8 would end the reading loop, and with it all hearing until
        the unanswered pings are noticed a quarter of a minute later.
        """
        try:
            await super()._process_msg(sid, subject, reply, data, headers)
        except (ValueError, LookupError) as error:
            self._unreadable.warning("dropped a message that cannot be read: %r", error)

    async def _read_loop(self) -> None:
        """It logs what it did not expect and ends; the connection would stay open and unread."""
        await super()._read_loop()
        if self.is_connected:
            await self._process_op_err(UnexpectedEOF())

    async def _process_err(self, err_msg: str) -> None:
        """Most of the server's complaints would close the client for good. A new connection is a new chance."""
        error = Error(f"nats: {err_msg}")
        if PERMISSIONS_ERR in err_msg:
            await self._error_cb(error)
        else:
            await self._process_op_err(error)

    async def _attempt_reconnect(self) -> None:
        """It ends by whatever it does not expect of the server, and nobody would try again."""
        try:
            await super()._attempt_reconnect()
        except Exception as error:  # noqa: BLE001 - whatever it is, nobody would try again
            background.fail("the reconnecting to NATS", error)
