"""Host and CUDA memory in every pairing. Needs two GPUs for some; skipped where there are none."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest

from components import nixl_connect as nc
from components.nixl_connect import Connector, Descriptor, cuda, parse_record

from .harness import Remote, pattern, remote, until

torch = pytest.importorskip("torch")
GPUS = 0 if cuda.driver() is None else torch.cuda.device_count()
DEVICES = ["cpu", "cuda:0", "cuda:1"][: GPUS + 1]
SIZES = [1, 65537, (20 << 20) + 3]
pytestmark = pytest.mark.skipif(GPUS == 0, reason="no GPU here")


def on(device: str, values: list[np.ndarray]) -> list[torch.Tensor]:
    tensors = [torch.from_numpy(value).to(device) for value in values]
    if device != "cpu":
        torch.cuda.synchronize(device)
    return tensors


async def test_bytes_between_every_two_devices() -> None:
    """Of two processes, each of which has its agent on a GPU of its own and memory on all of them."""
    async with Connector("here", device="cuda:0") as connector, remote(device=DEVICES[-1]) as other:
        for here, there in itertools.product(DEVICES, DEVICES):
            record = parse_record(await other.ask("expose_on", number=1, device=there, sizes=SIZES))
            targets = on(here, [np.zeros(size, np.uint8) for size in SIZES])
            read = await connector.begin_read(record, [Descriptor(target) for target in targets])
            await read.wait_for_completion()
            for index, target in enumerate(targets):
                assert np.array_equal(target.cpu().numpy(), pattern(SIZES[index], 1 + index)), (here, there, index)
            assert read.lane.endswith("+staged") is ((here == "cpu") != (there == "cpu"))

            record = parse_record(await other.ask("accept_on", number=2, device=there, sizes=SIZES))
            sources = on(here, [pattern(size, 40 + i) for i, size in enumerate(SIZES)])
            write = await connector.begin_write([Descriptor(source) for source in sources], record, staged=True)
            for index in (2, 0, 1):
                write.post(index)
            await write.wait_for_completion()
            assert await other.ask("wait", number=2) == "COMPLETE"
            assert await other.ask("written_on", seed=40), (here, there)


async def rate(connector: Connector, other: Remote, there: str) -> float:
    """GB/s of READs of 64 MiB, the best of four."""
    size, best = 64 << 20, 0.0
    target = torch.zeros(size, dtype=torch.uint8, device="cuda:0")
    torch.cuda.synchronize("cuda:0")
    for number in range(4):
        record = parse_record(await other.ask("expose_on", number=number, device=there, sizes=[size]))
        start = time.perf_counter()
        await (await connector.begin_read(record, Descriptor(target), deadline=20.0)).wait_for_completion()
        best = max(best, size / (time.perf_counter() - start) / 1e9)
    assert np.array_equal(target.cpu().numpy(), pattern(size, 3))
    return best


async def test_the_fast_lane_is_taken(caplog: pytest.LogCaptureFixture) -> None:
    there = DEVICES[-1]
    async with Connector("here", device="cuda:0") as connector, remote(device=there) as other:
        fast = await rate(connector, other, there)
    print(f"READ cuda:0<-{there}: {fast:.1f} GB/s")
    assert fast > 20.0
    assert "software path" not in caplog.text


async def test_cuda_memory_is_refused_by_an_agent_without_a_context() -> None:
    async with Connector("here") as connector:
        await connector.create_readable(Descriptor(np.zeros(4096, np.uint8)))
        connector._pump.core.agent.device = None  # as in a process that had not used CUDA yet
        with pytest.raises(nc.DeviceUnavailable, match="device="):
            await connector.create_readable(Descriptor(torch.zeros(4096, dtype=torch.uint8, device="cuda:0")))


async def test_a_pool_on_the_gpu_feeds_several_readers() -> None:
    async with Connector("here", device="cuda:0") as connector, Connector("near", device="cuda:0") as near:
        pool = await connector.create_pool(64 << 20, "cuda:0")
        slot = pool.allocate(1 << 20)
        slot.tensor(torch.uint8)[:] = torch.from_numpy(pattern(1 << 20, 3)).to("cuda:0")
        torch.cuda.synchronize()
        exposed = [await connector.create_readable(slot.descriptor) for _ in range(3)]
        slot.release()
        for operation in exposed:
            target = torch.zeros(1 << 20, dtype=torch.uint8, device="cuda:0")
            await (await near.begin_read(operation.metadata(), Descriptor(target))).wait_for_completion()
            assert np.array_equal(target.cpu().numpy(), pattern(1 << 20, 3))
        await until(lambda: pool.used == 0)


async def test_one_pool_of_host_memory_after_another() -> None:
    """Each is pinned for the GPU, and may lie where the one before lay."""
    for _ in range(3):
        async with Connector("here", device="cuda:0") as connector:
            assert (await connector.create_pool(32 << 20)).size == 32 << 20


async def test_the_self_test_names_the_lanes() -> None:
    async with Connector("here", device="cuda:0") as connector:
        lanes = await connector.self_test(DEVICES)
        assert len(lanes) == 2 * len(DEVICES) ** 2
        for lane in lanes:
            print(lane)
        slow = [lane for lane in lanes if lane.software]
        assert not slow, slow
        assert connector.counters().lanes == tuple(lanes)
