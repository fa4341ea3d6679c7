"""Raw NIXL used as well as it can be: descriptors prepared once, a handle posted again and again, a spinning poll."""

from __future__ import annotations

import os
import threading
import time

import numpy as np

from benchmarks.transfer_memory import Memory, spans, touch
from benchmarks.transfer_points import Point
from components.nixl_connect.agent import load_nixl


class Raw:
    def __init__(self, name: str, memory: Memory) -> None:
        touch(memory.device)
        if memory.device != "cpu":
            os.environ.setdefault("UCX_CUDA_IPC_ENABLE_GET_ZCOPY", "y")
        api, _ = load_nixl()
        self.memory = memory
        self.agent = api.nixl_agent(name, api.nixl_agent_config(enable_prog_thread=False, backends=["UCX"]))
        whole = (memory.ptr, int(memory.data.nbytes), memory.index, "")
        self.registered = self.agent.register_memory([whole], memory.kind)

    def describe(self) -> tuple[bytes, int, int, str]:
        return self.agent.get_agent_metadata(), self.memory.ptr, self.memory.index, self.memory.kind

    def load(self, peer: tuple[bytes, int, int, str]) -> None:
        metadata, self.remote_ptr, self.remote_index, self.remote_kind = peer
        name = self.agent.add_remote_agent(metadata)
        self.peer = name.decode() if isinstance(name, bytes) else name

    def progress(self, until: threading.Event) -> None:
        """The passive end has to look now and then: to be connected to, and all the time over TCP."""
        while not until.is_set():
            self.agent.get_new_notifs()
            time.sleep(50e-6)

    def measure(self, point: Point, rounds: int) -> list[float]:
        agent, handles, lists = self.agent, [], []
        for slot in range(point.in_flight):
            local = self.memory.spans(slot * point.size, point.piece, point.buffers)
            remote = spans(self.remote_ptr + slot * point.size, point.piece, point.buffers, self.remote_index)
            here = agent.prep_xfer_dlist("NIXL_INIT_AGENT", local, self.memory.kind)
            there = agent.prep_xfer_dlist(self.peer, remote, self.remote_kind)
            indices = np.arange(point.buffers, dtype=np.int32)
            handles.append(agent.make_prepped_xfer(point.kind.upper(), here, indices, there, indices))
            lists += [here, there]
        times = []
        for _ in range(rounds):
            start = time.perf_counter()
            pending = [handle for handle in handles if agent.transfer(handle) == "PROC"]
            while pending:
                pending = [handle for handle in pending if agent.check_xfer_state(handle) == "PROC"]
            times.append(time.perf_counter() - start)
        for item in (*handles, *lists):
            item.release()
        return times
