"""An instance in a process of its own: ``python -m tests.discovery.member ENDPOINT NAMESPACE ID``."""

from __future__ import annotations

import asyncio
import sys

from components.discovery import Registry


async def main(endpoint: str, namespace: str, id: str) -> None:
    registry = await Registry.connect([endpoint], namespace)
    await registry.register("encode", id, id.encode(), ttl=2.0)
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:4]))
