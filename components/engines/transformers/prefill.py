"""The language model of Qwen2.5-VL as a prefill engine: prompts in batches, KV out layer by layer."""

from __future__ import annotations

import asyncio
import queue
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from components.aio import on_thread, to_the_end
from components.engines.base import EngineError, FirstToken, ImageInfo, Prompt
from components.engines.transformers.checkpoint import Checkpoint
from components.engines.transformers.compute import ComputeThread
from components.engines.transformers.kv import KVPool, Run, cut
from components.engines.transformers.positions import expand, mrope_positions
from components.engines.transformers.sampling import Sampler, choose
from components.engines.transformers.writer import KVWriter
from components.nixl_connect import Connector, Descriptor, RdmaMetadata, TransferError


@dataclass(eq=False)
class _Job:
    prompt: Prompt
    run: Run
    writer: KVWriter
    done: asyncio.Future[int]
    next_position: int = 0
    seconds: float = 0.0
    abandoned: bool = False
    over: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass
class _PrefillCache:
    """Stands in for transformers' cache during one batch: keeps nothing, puts each layer's KV where it will be read."""

    pool: KVPool
    jobs: Sequence[_Job]
    lengths: list[int] = field(default_factory=list)

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """keys, values: (batch, kv_heads, padded, head_dim) of ``layer``, rotated; returned as they are."""
        for row, job in enumerate(self.jobs):
            start, count = job.run.start, job.run.count
            self.pool.tensor[layer, 0, start : start + count] = keys[row, :, :count].transpose(0, 1)
            self.pool.tensor[layer, 1, start : start + count] = values[row, :, :count].transpose(0, 1)
            job.writer.computed(layer)
        return keys, values


class TransformersPrefillEngine:
    """Loads the language model alone. One thread computes; NIXL moves what it has computed meanwhile."""

    def __init__(
        self, checkpoint: Checkpoint, connector: Connector, *, kv_tokens: int, max_batch_tokens: int, deadline: float
    ) -> None:
        text = checkpoint.config.text_config
        self.format = checkpoint.format
        self.image_token_id = int(checkpoint.config.image_token_id)
        self.vocabulary = checkpoint.vocabulary
        self.max_context = min(checkpoint.max_context, kv_tokens)
        self._merge = checkpoint.merge
        self._dtype = checkpoint.dtype
        self._device = checkpoint.device
        self._connector = connector
        self._deadline = deadline
        self._max_batch_tokens = max_batch_tokens
        self._model = checkpoint.language_model()
        self.pool = KVPool(
            text.num_hidden_layers,
            kv_tokens,
            text.num_key_value_heads,
            text.hidden_size // text.num_attention_heads,
            dtype=checkpoint.dtype,
            device=checkpoint.device,
        )
        self._region = Descriptor(self.pool.tensor)
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._jobs: set[_Job] = set()
        self._thread = ComputeThread("prefill", checkpoint.device, self._compute, died=self._fail)

    async def start(self) -> None:
        await self._region.register_memory(self._connector)
        await on_thread(self._warm_up, "warm up")
        self._thread.start()

    def held(self) -> dict[str, int]:
        return {"KV tokens": self.pool.used, "seconds in this step": int(self._thread.step_seconds)}

    async def close(self) -> None:
        self._queue.put(None)
        if await self._thread.close():
            for job in list(self._jobs):
                await job.over.wait()
        await self._region.deregister_memory(self._connector)

    def expand(self, token_ids: Sequence[int], tokens: Sequence[int]) -> tuple[int, ...]:
        return expand(token_ids, self.image_token_id, tokens)

    def source(self, token_ids: Sequence[int], images: Sequence[ImageInfo], cache_salt: str) -> bytes:
        return b""  # the decode engine exposes memory; whoever holds its record may write

    async def prefill(self, prompt: Prompt, target: asyncio.Future[bytes], seconds: float) -> FirstToken:
        (run,) = await self.pool.acquire(len(prompt.token_ids), contiguous=True)
        job = _Job(prompt, run, KVWriter(), asyncio.get_running_loop().create_future())
        self._jobs.add(job)
        try:
            self._begin(job)
            await self._attach(job, await target, seconds)
            token = await asyncio.shield(job.done)
            await job.writer.landed(self._deadline)
            return FirstToken(
                token=token,
                next_position=job.next_position,
                compute_seconds=job.seconds,
                kv_bytes=job.writer.bytes,
                kv_seconds=job.writer.seconds,
                lane=job.writer.lane,
            )
        except TransferError as error:
            raise EngineError("transfer_failed", f"KV write: {error}", retryable=True) from error
        finally:
            job.abandoned = True
            await to_the_end(self._let_go(job))

    def _begin(self, job: _Job) -> None:
        try:
            self._thread.check()
        except EngineError as error:
            job.done.set_exception(error)
            raise
        self._queue.put(job)

    async def _let_go(self, job: _Job) -> None:
        """The pool's memory is free only when the model and NIXL have let go of it."""
        await job.writer.close()
        await asyncio.gather(job.done, return_exceptions=True)
        self.pool.release([job.run])
        self._jobs.discard(job)
        job.over.set()

    def _fail(self, error: EngineError) -> None:
        for job in self._jobs:
            if not job.done.done():
                job.done.set_exception(error)

    async def _attach(self, job: _Job, target: bytes, seconds: float) -> None:
        """Begin the write into ``target``. Its pieces say where the other side's memory is cut; ours is in one run."""
        try:
            record = RdmaMetadata.model_validate_json(target)
        except ValueError as error:
            raise EngineError("transfer_failed", f"KV target is no record: {error}") from error
        sizes = [piece.size for piece in record.descriptors]
        runs = len(sizes) // (2 * self.pool.layers)
        counts = [size // self.pool.token_bytes for size in sizes[:runs]]
        expected = [count * self.pool.token_bytes for count in counts] * (2 * self.pool.layers)
        if sizes != expected or sum(counts) != job.run.count:
            raise EngineError("transfer_failed", "KV target does not fit this model's layout or this prompt's length")
        local = [Descriptor(piece) for piece in self.pool.pieces(cut(job.run, counts))]
        # Claimed for as long as the request may take: this prompt may wait behind others, and its computing takes what
        # it takes. The deadline for moving bytes begins where the computing ends.
        operation = await self._connector.begin_write(local, record, staged=True, deadline=seconds)
        job.writer.attach(operation, pieces_per_layer=2 * runs)

    def _compute(self) -> None:
        ahead: _Job | None = None
        while True:
            job = ahead or self._queue.get()
            if job is None:
                return
            batch, ahead = self._batch(job)
            batch = [job for job in batch if not self._skip(job)]
            if batch:
                self._run(batch)

    def _batch(self, first: _Job) -> tuple[list[_Job], _Job | None]:
        """``first`` and whatever else waits, as long as the padded batch stays within its token budget."""
        batch, longest = [first], first.run.count
        while True:
            try:
                job = self._queue.get_nowait()
            except queue.Empty:
                return batch, None
            if job is None:
                self._queue.put(None)
                return batch, None
            longest = max(longest, job.run.count)
            if longest * (len(batch) + 1) > self._max_batch_tokens:
                return batch, job
            batch.append(job)

    def _skip(self, job: _Job) -> bool:
        if job.abandoned:
            self._resolve(job, EngineError("cancelled", "cancelled before prefill"))
        return job.abandoned

    def _run(self, batch: list[_Job]) -> None:
        began = time.perf_counter()
        results = self._thread.each(self._forward, batch)
        seconds = time.perf_counter() - began
        for job, result in zip(batch, results, strict=True):
            job.seconds = seconds
            self._resolve(job, result)

    @torch.inference_mode()
    def _forward(self, batch: Sequence[_Job]) -> list[int]:
        """One pass over right-padded prompts: a causal mask alone keeps a row from its padding."""
        longest = max(job.run.count for job in batch)
        ids = torch.zeros(len(batch), longest, dtype=torch.long)
        positions = torch.zeros(3, len(batch), longest, dtype=torch.long)
        for row, job in enumerate(batch):
            prompt = job.prompt
            count = job.run.count
            place, job.next_position = mrope_positions(
                prompt.token_ids, self.image_token_id, [image.grid for image in prompt.images], self._merge
            )
            ids[row, :count] = torch.tensor(prompt.token_ids)
            positions[:, row, :count] = torch.from_numpy(place)
        ids = ids.to(self._device)
        rows = self._model.language_model.embed_tokens(ids)
        for row, job in enumerate(batch):
            if job.prompt.images:
                images = [
                    image.slot.tensor(self._dtype, (image.tokens, self.format.width)).to(self._device)
                    for image in job.prompt.images
                ]
                rows[row, ids[row] == self.image_token_id] = torch.cat(images)
        hidden = self._model.language_model(
            inputs_embeds=rows,
            position_ids=positions.to(self._device),
            attention_mask={"full_attention": None, "sliding_attention": None},
            past_key_values=_PrefillCache(self.pool, batch),
            use_cache=True,
        ).last_hidden_state
        last = hidden[torch.arange(len(batch)), [job.run.count - 1 for job in batch]]
        samplers = [Sampler(job.prompt.sampling) for job in batch]
        return choose(self._model.lm_head(last), samplers, [job.prompt.sampling.drawn for job in batch])

    def _resolve(self, job: _Job, result: int | EngineError) -> None:
        def resolve() -> None:
            if job.done.done():
                return
            if isinstance(result, EngineError):
                job.done.set_exception(result)
            else:
                job.done.set_result(result)

        job.done.get_loop().call_soon_threadsafe(resolve)

    @torch.inference_mode()
    def _warm_up(self) -> None:
        self._model.language_model(input_ids=torch.zeros(1, 16, dtype=torch.long, device=self._device), use_cache=False)
