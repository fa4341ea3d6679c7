"""One bare ``sglang.Engine`` in a process of its own: what our panels are measured against.

    python -m benchmarks.sglang_engine prefill|decode|whole TOPOLOGY DEVICE PORT

It is started with the arguments and asked with the requests of ``components.engines.sglang``. Tasks come, an object of
JSON a line, from whoever listens on PORT, and what came of them goes back when they are done.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import msgspec
import torch

from benchmarks.sglang_task import Done, EngineRole, Ready, Task
from components.config import Topology, load
from components.engines.base import Grid
from components.engines.sglang.arguments import Arguments
from components.engines.sglang.host import spare_the_collector
from components.engines.sglang.request import image_data, request, rows, stub
from components.engines.sglang.scheduler import run_scheduler
from components.engines.transformers.checkpoint import Checkpoint
from components.engines.transformers.positions import expand
from components.protocol import Sampling

_OF_A_HALF = {
    *("disaggregation_mode", "disaggregation_transfer_backend", "disaggregation_decode_retraction_backup"),
    "num_reserved_decode_tokens",
}
_OF_PROMPTS = ("chunked_prefill_size", "max_prefill_tokens", "mm_feature_transport")


def arguments(role: EngineRole, checkpoint: Checkpoint, topology: Topology) -> Arguments:
    """Those that our adapter starts the engine with; ``whole`` is prefill and decode in one."""
    prefill, decode = Arguments.for_prefill(checkpoint, topology), Arguments.for_decode(checkpoint, topology)
    if role != "whole":
        return prefill if role == "prefill" else decode
    alone = {name: value for name, value in decode.engine.items() if name not in _OF_A_HALF}
    alone |= {name: prefill.engine[name] for name in _OF_PROMPTS if name in prefill.engine}
    chosen = {**topology.prefill.engine_arguments, **topology.decode.engine_arguments}
    return Arguments(alone, chosen, decode.environment)


class Requests:
    """What this engine is asked for a task, as our adapter asks it."""

    def __init__(self, role: EngineRole, checkpoint: Checkpoint) -> None:
        self._role = role
        self._merge = checkpoint.merge
        self._image_token_id = int(checkpoint.config.image_token_id)
        self._width = checkpoint.format.width
        self._dtype, self._device = checkpoint.dtype, checkpoint.device
        self._embeddings: dict[Grid, torch.Tensor] = {}

    def expanded(self, task: Task) -> tuple[int, ...]:
        return expand(task.token_ids, self._image_token_id, [rows(task.grid, self._merge)] if task.grid else [])

    def request(self, task: Task) -> dict[str, Any]:
        sampling = Sampling(max_tokens=1 if self._role == "prefill" else task.tokens, ignore_eos=True)
        images = None
        if task.grid and self._role == "decode":
            images = stub([task.grid], 0)
        elif task.grid:
            images = image_data(self._embedding(task.grid), [task.grid], 0)
        asked = request(self.expanded(task), sampling, images, "", "127.0.0.1", task.port, task.room)
        del asked["extra_key"]  # none; ``async_generate`` knows no such argument
        if self._role == "whole":
            asked = {name: value for name, value in asked.items() if not name.startswith("bootstrap_")}
        return asked

    def _embedding(self, grid: Grid) -> torch.Tensor:
        """In hand, on the device: encoding a picture and moving its rows is not what is measured here."""
        if grid not in self._embeddings:
            shape = (rows(grid, self._merge), self._width)
            self._embeddings[grid] = torch.randn(shape, dtype=self._dtype, device=self._device)
        return self._embeddings[grid]


async def answer(engine: Any, requests: Requests, task: Task, reply: Callable[[Done], None]) -> None:
    done = Done(task.id, len(requests.expanded(task)), [], [])
    try:
        async for chunk in await engine.async_generate(**requests.request(task), stream=True):
            if chunk["output_ids"]:
                done.times.append(time.perf_counter())
                done.counts.append(len(chunk["output_ids"]))
            reason = chunk["meta_info"]["finish_reason"] or {}
            if reason.get("type") == "abort":
                done.error = str(reason)
    except Exception as error:  # noqa: BLE001 (whoever asked is told)
        done.error = repr(error)
    reply(done)


async def serve(role: EngineRole, topology: Topology, device: str, port: int) -> None:
    model = topology.model
    checkpoint = Checkpoint.open(model.path, dtype=model.dtype, device=device, max_context=model.max_context)
    start_with = arguments(role, checkpoint, topology)
    os.environ.update(start_with.environment)
    # Late: the import reads the environment.
    from sglang.srt.entrypoints.engine import Engine
    from sglang.srt.server_args import ServerArgs

    class BareEngine(Engine):
        run_scheduler_process_func = staticmethod(run_scheduler)

    engine = BareEngine(**start_with.known(ServerArgs))
    spare_the_collector()  # as our adapter does
    requests = Requests(role, checkpoint)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    def send(message: Ready | Done) -> None:
        writer.write(msgspec.json.encode(message) + b"\n")

    send(Ready(start_with.bootstrap[1] if role == "prefill" and start_with.bootstrap else None))
    running: set[asyncio.Task[None]] = set()
    while line := await reader.readline():
        task = asyncio.create_task(answer(engine, requests, msgspec.json.decode(line, type=Task), send))
        running.add(task)
        task.add_done_callback(running.discard)
    engine.shutdown()


if __name__ == "__main__":
    asyncio.run(serve(cast(EngineRole, sys.argv[1]), load(Path(sys.argv[2])), sys.argv[3], int(sys.argv[4])))
