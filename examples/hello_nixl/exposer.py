"""Expose 15 bytes, print the record, wait until they have been read: see README.md."""

import asyncio

from components.nixl_connect import Connector, Descriptor


async def main() -> None:
    async with Connector() as connector:
        readable = await connector.create_readable(Descriptor(b"hello over NIXL"))
        print(readable.metadata().model_dump_json(), flush=True)
        await readable.wait_for_completion()


asyncio.run(main())
