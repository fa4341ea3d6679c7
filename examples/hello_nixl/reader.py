"""Take a record from standard input and read what it names: see README.md."""

import asyncio
import sys

from components.nixl_connect import Connector, Descriptor, parse_record


async def main(line: str) -> None:
    record = parse_record(line)
    received = bytearray(record.size)
    async with Connector() as connector:
        read = await connector.begin_read(record, Descriptor(received))
        await read.wait_for_completion()
    print(received.decode())


asyncio.run(main(sys.stdin.readline()))
