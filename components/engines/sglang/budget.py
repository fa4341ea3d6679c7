"""Who may be in the engine: a fixed number of KV tokens and of requests, given out in order of asking."""

from __future__ import annotations

import asyncio
from collections import deque


class Budget:
    """SGLang lets requests in as they come and throws some out again when memory runs short; and a request that waits
    inside it runs against its time-outs. So requests wait here."""

    def __init__(self, tokens: int, requests: int) -> None:
        self._tokens = tokens
        self._requests = requests
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self.used = 0
        self.running = 0

    async def acquire(self, tokens: int) -> None:
        """Wait for a place and ``tokens`` of memory; whoever came first gets them first."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((tokens, turn))
        self._admit()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._admit()  # whoever stood behind may fit
            else:
                self.release(tokens)
            raise

    def release(self, tokens: int) -> None:
        self.used -= tokens
        self.running -= 1
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self.running < self._requests:
            tokens, turn = self._waiting[0]
            if not turn.cancelled():
                if self.used + tokens > self._tokens:
                    return
                self.used += tokens
                self.running += 1
                turn.set_result(None)
            self._waiting.popleft()
