"""The process that ``lanes`` starts: the data plane's self-test over the devices named, its result as one line of JSON.

A process of its own because UCX reads its settings once, and because what goes wrong in it may end it.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from components.nixl_connect import Connector, TransferError


async def _probe(devices: Sequence[str]) -> None:
    gpu = next((device for device in devices if device != "cpu"), None)
    async with Connector(device=gpu) as connector:
        try:
            lanes = await connector.self_test(devices)
        except TransferError as error:
            sys.exit(f"{type(error).__name__}: {error}")
    # UCX writes its log through C's buffered streams, and the parent reads it next.
    ctypes.CDLL(None).fflush(None)
    print(json.dumps([asdict(lane) for lane in lanes]), flush=True)


if __name__ == "__main__":
    asyncio.run(_probe(sys.argv[1:]))
