"""Cables with latency, for namespaces: what one end takes in comes out of the other a moment later.

    python -m tests.nodes.wire SECONDS NAME:NAME [NAME:NAME…]

Makes both ends of each cable as TAP devices, prints ``ready``, and carries frames until it is killed. The kernel's own
``netem`` would do the same, where it is built in.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import struct
import sys
from collections import deque

_TUNSETIFF, _IFF_TAP, _IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
_FRAME = 65600
_FRAMES = 2000
"""Most frames on the way in one direction; more are lost, as in any cable."""


def tap(name: str) -> int:
    """A new device with its end in this process; it goes when the descriptor is closed."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI))
    return device


class Way:
    """One direction of a cable."""

    def __init__(self, source: int, target: int, delay: float) -> None:
        self._source, self._target, self._delay = source, target, delay
        self._frames: deque[tuple[float, bytes]] = deque(maxlen=_FRAMES)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(source, self._take)

    def _take(self) -> None:
        try:
            frame = os.read(self._source, _FRAME)
        except OSError:  # the device is down: the cable is cut
            return
        if not self._frames:
            self._loop.call_later(self._delay, self._give)
        self._frames.append((self._loop.time() + self._delay, frame))

    def _give(self) -> None:
        while self._frames and self._frames[0][0] <= self._loop.time():
            _, frame = self._frames.popleft()
            try:
                os.write(self._target, frame)
            except OSError:  # down, or full
                continue
        if self._frames:
            self._loop.call_at(self._frames[0][0], self._give)


async def carry(delay: float, cables: list[str]) -> None:
    ways = []
    for cable in cables:
        here, there = (tap(name) for name in cable.split(":"))
        ways += [Way(here, there, delay), Way(there, here, delay)]
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(carry(float(sys.argv[1]), sys.argv[2:]))
