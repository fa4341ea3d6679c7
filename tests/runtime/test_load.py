"""A worker that loads a model, which for a large one takes minutes, ends when it is told to."""

from __future__ import annotations

import signal
import time

import pytest

from components.runtime.servers import EtcdServer, NatsServer
from tests.servers import process


@pytest.mark.parametrize("role", ["encode", "prefill", "decode"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_a_worker_while_it_loads(
    role: str, number: signal.Signals, shared_nats: NatsServer, shared_etcd: EtcdServer
) -> None:
    async with process("tests.runtime.loading", role, shared_nats.url, shared_etcd.endpoint) as worker:
        assert await worker.line(60) == "loading"
        told = time.monotonic()
        worker.signal(number)
        assert await worker.ended(10) == 0
        assert time.monotonic() - told < 5
