"""SGLang as prefill engine: embeddings in, KV to the decode engine by SGLang's own NIXL backend."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import msgspec
import torch

from components.engines.base import EngineError, FirstToken, ImageInfo, Prompt
from components.engines.sglang.arguments import Arguments
from components.engines.sglang.host import EngineHost
from components.engines.sglang.request import Source, content, image_data, probe, read_room, request, rows
from components.engines.transformers.checkpoint import Checkpoint
from components.engines.transformers.positions import expand

# SGLang refuses a prompt that leaves it fewer tokens than this of the context.
MARGIN = 8


class SGLangPrefillEngine:
    def __init__(self, checkpoint: Checkpoint, arguments: Arguments, *, kv_tokens: int) -> None:
        assert arguments.bootstrap is not None
        self.format = checkpoint.format
        self.image_token_id = int(checkpoint.config.image_token_id)
        self.max_context = min(checkpoint.max_context, kv_tokens) - MARGIN
        self.vocabulary = checkpoint.vocabulary
        self._merge = checkpoint.merge
        self._dtype = checkpoint.dtype
        self._device = checkpoint.device
        self._bootstrap = arguments.bootstrap
        self._host = EngineHost(arguments)
        text = checkpoint.config.text_config
        head_dim = text.hidden_size // text.num_attention_heads
        self._token_bytes = text.num_hidden_layers * 2 * text.num_key_value_heads * head_dim * checkpoint.dtype.itemsize

    async def start(self) -> None:
        await self._host.start(probe(self.image_token_id, self._merge, self.format.width, self._dtype))

    def held(self) -> dict[str, int]:
        return {"engine requests": self._host.requests}

    async def close(self) -> None:
        await self._host.close()

    def expand(self, token_ids: Sequence[int], tokens: Sequence[int]) -> tuple[int, ...]:
        return expand(token_ids, self.image_token_id, tokens)

    def source(self, token_ids: Sequence[int], images: Sequence[ImageInfo], cache_salt: str) -> bytes:
        host, port = self._bootstrap
        for image in images:
            self._check(image)
        grids = [image.grid for image in images]
        number = content(self.format.revision, images)
        return msgspec.msgpack.encode(Source(host, port, list(token_ids), grids, number, cache_salt))

    async def prefill(self, prompt: Prompt, target: asyncio.Future[bytes], seconds: float) -> FirstToken:
        room = read_room(await target)
        images = None
        if prompt.images:
            grids = [image.grid for image in prompt.images]
            images = image_data(self._embedding(prompt), grids, content(self.format.revision, prompt.images))
        host, port = self._bootstrap
        one = msgspec.structs.replace(prompt.sampling, max_tokens=1)
        asked = request(prompt.token_ids, one, images, prompt.cache_salt, host, port, room)
        began = time.perf_counter()
        async with self._host.open(asked) as stream:
            # The token comes when the KV has landed.
            tokens = [token async for output in stream.outputs() for token in output.tokens]
        if not tokens:
            raise EngineError("internal", "SGLang ended a prefill without a token")
        return FirstToken(
            token=tokens[0],
            next_position=0,
            compute_seconds=time.perf_counter() - began,
            kv_bytes=len(prompt.token_ids) * self._token_bytes,
            kv_seconds=0.0,  # SGLang does not say; it is in compute_seconds
            lane="SGLang's NIXL",
        )

    def _embedding(self, prompt: Prompt) -> torch.Tensor:
        """(rows, width) in prompt order, a copy: SGLang may hold it for longer than the slots are ours.

        Raises EngineError for what would kill SGLang's scheduler (too few rows) or be misread silently (too many).
        """
        for image in prompt.images:
            self._check(image)
        width = self.format.width
        parts = [image.slot.tensor(self._dtype, (image.tokens, width)) for image in prompt.images]
        embedding = torch.cat(parts).to(self._device)
        placeholders = prompt.token_ids.count(self.image_token_id)
        if placeholders != len(embedding):
            raise EngineError("internal", f"{len(embedding)} rows of pictures for {placeholders} placeholders")
        return embedding

    def _check(self, image: ImageInfo) -> None:
        if rows(image.grid, self._merge) != image.tokens or min(image.grid) < 1:
            raise EngineError("transfer_failed", f"an embedding of {image.tokens} rows has the grid {image.grid}")
