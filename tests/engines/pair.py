"""Prefill and decode engines joined by NIXL, as in processes of their own, and what to ask them."""

from __future__ import annotations

import io
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from benchmarks.reference import Reference
from components.aio import child
from components.engines.base import FirstToken, ImageRows, Prompt, Reservation
from components.engines.transformers.checkpoint import Checkpoint
from components.engines.transformers.decode import TransformersDecodeEngine
from components.engines.transformers.encode import TransformersEncodeEngine
from components.engines.transformers.prefill import TransformersPrefillEngine
from components.media import content_hash
from components.nixl_connect import Connector, Pool
from components.protocol import Sampling
from tests.model import MODEL
from tests.waiting import until

TOKENS = 24


@dataclass
class Engines:
    """The three engines, each half of the data plane with an agent of its own, as in three processes."""

    encode: TransformersEncodeEngine
    prefill: TransformersPrefillEngine
    decode: TransformersDecodeEngine
    pool: Pool
    connectors: tuple[Connector, Connector]

    def embed(self, pictures: list[bytes]) -> tuple[ImageRows, ...]:
        images = [self.encode.prepare(Image.open(io.BytesIO(data)).convert("RGB")) for data in pictures]
        slots = [self.pool.allocate(image.tokens * self.encode.format.row_bytes) for image in images]
        if images:
            self.encode.encode(images, slots)
        return tuple(
            ImageRows(image.grid, image.tokens, content_hash(data), slot)
            for data, slot, image in zip(pictures, slots, images, strict=True)
        )

    async def first(
        self, token_ids: list[int], pictures: list[bytes], sampling: Sampling
    ) -> tuple[Reservation, FirstToken, int]:
        rows = self.embed(pictures)
        try:
            expanded = self.prefill.expand(token_ids, [image.tokens for image in rows])
            reservation = await self.decode.reserve(len(expanded), sampling, b"", 60)

            async def target() -> bytes:
                return reservation.target

            try:
                first = await self.prefill.prefill(Prompt(expanded, rows, sampling), child(target()), 60)
            except BaseException:
                reservation.release()
                raise
        finally:
            for image in rows:
                image.slot.release()
        return reservation, first, len(expanded)

    async def answer(self, token_ids: list[int], pictures: list[bytes], sampling: Sampling) -> list[int]:
        reservation, first, _ = await self.first(token_ids, pictures, sampling)
        tokens: list[int] = []
        try:
            stream = self.decode.generate(reservation, first.token, first.next_position, sampling, first.handover)
            async with aclosing(stream):
                async for new in stream:
                    tokens += new
        finally:
            reservation.release()
        return tokens

    def held(self) -> dict[str, int]:
        """Everything that must be zero when nobody asks for anything."""
        counters = [connector.counters() for connector in self.connectors]
        return {
            "prefill KV": self.prefill.pool.used,
            "decode KV": self.decode.pool.used,
            "pool": self.pool.used,
            **{
                name: sum(getattr(each, name) for each in counters)
                for name in ("leases", "handles", "in_flight", "quarantined")
            },
        }

    async def idle(self) -> None:
        """Wait until all memory is back and nothing is exposed or in flight."""
        await until(lambda: not any(self.held().values()), self.held)


@asynccontextmanager
async def running_engines() -> AsyncIterator[Engines]:
    torch.set_num_threads(1)
    checkpoint = Checkpoint.open(str(MODEL))
    async with Connector() as near, Connector() as far:
        prefill = TransformersPrefillEngine(checkpoint, near, kv_tokens=4096, max_batch_tokens=2048, deadline=20)
        decode = TransformersDecodeEngine(checkpoint, far, kv_tokens=4096, block_tokens=16, max_batch=8, deadline=20)
        await prefill.start()
        await decode.start()
        pool = await near.create_pool(1 << 24)
        yield Engines(TransformersEncodeEngine(checkpoint), prefill, decode, pool, (near, far))
        await prefill.close()
        await decode.close()


def picture(seed: int, size: tuple[int, int] = (224, 224)) -> bytes:
    blocks = np.random.default_rng(seed).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST).save(file, "PNG")
    return file.getvalue()


def ask(reference: Reference, text: str, pictures: int) -> tuple[list[dict[str, object]], list[int]]:
    """A user's turn and its token ids, one placeholder a picture."""
    parts = [{"type": "image"}] * pictures + [{"type": "text", "text": text}]
    messages: list[dict[str, object]] = [{"role": "user", "content": parts}]
    prompt = reference.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return messages, reference.tokenizer(prompt, add_special_tokens=False)["input_ids"]


greedy = Sampling(max_tokens=TOKENS, temperature=0.0, ignore_eos=True)


@contextmanager
def slow(engines: Engines) -> Iterator[tuple[threading.Event, threading.Event]]:
    """The model stops in its second layer until ``go`` is set; ``there`` is set when it is there."""
    there, go = threading.Event(), threading.Event()

    def wait(*_: object) -> None:
        there.set()
        assert go.wait(30)

    hook = engines.prefill._model.language_model.layers[1].register_forward_pre_hook(wait)
    try:
        yield there, go
    finally:
        hook.remove()
        go.set()
