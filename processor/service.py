"""The processor panel: conversations to token ids, token ids to text.

Answers ``chat``; asks ``generate`` of decode workers. It holds no weights and imports no torch.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing

from components import memory
from components.config import Topology
from components.messaging import CallError, Context, operation
from components.protocol import (
    ChatItem,
    ChatRequest,
    ErrorCode,
    GenerateRequest,
    TextPart,
)
from components.runtime import Panel, Peers
from components.runtime.hops import hops
from components.telemetry.trace import Trace
from processor.answer import Answer
from processor.continuation import generate
from processor.gather import gather
from processor.model_files import ModelFiles, load
from processor.prompt import Prompt, Prompter
from processor.sampling import sampling

# A prompt of this many characters takes about a millisecond; more of it happens beside the event loop.
_SHORT = 4_000
# What a message or a part of one takes besides its text, in characters.
_PART = 20
# Each takes up to some hundred bytes for every token of the context; all of them share the tokenizer's own threads.
_LONG_AT_ONCE = 4
# How long after a long prompt its memory goes back to the system.
_TIDY_SECONDS = 0.5


class ProcessorService:
    def __init__(self, model: str, files: ModelFiles, max_context: int, decoders: Peers) -> None:
        self._model = model
        self._files = files
        self._max_context = max_context
        self._prompter = Prompter(files, max_context)
        self._decoders = decoders
        self._threads = ThreadPoolExecutor(_LONG_AT_ONCE, "prompt")
        self._tidying: asyncio.TimerHandle | None = None

    async def chat(self, request: ChatRequest, context: Context) -> AsyncIterator[ChatItem]:
        if request.model != self._model:
            raise CallError(ErrorCode.MODEL_NOT_FOUND, f"The model `{request.model}` does not exist.", param="model")
        trace = Trace("processor")
        with trace.step("tokenize"):
            prompt = await self._prompt(request)
        asked = GenerateRequest(
            model=request.model,
            token_ids=prompt.token_ids,
            images=prompt.images,
            sampling=sampling(request, self._files.stop_token_ids, len(prompt.token_ids), self._max_context),
            cache_salt=request.cache_salt,
        )
        answer = Answer(self._files.tokenizer, request.stop, len(prompt.token_ids))
        busy = 0.0
        items = generate(self._decoders, asked, context)
        # Leaving this block cancels what a stop string has made superfluous, or what nobody waits for any more.
        async with aclosing(items), aclosing(gather(items)) as batches:
            async for batch in batches:
                began = time.perf_counter()
                delta = answer.take(batch)
                busy += time.perf_counter() - began
                if delta is not None:
                    yield delta
                if answer.over:
                    break
        if not answer.over:
            raise CallError(ErrorCode.INTERNAL, "The answer ended without an end.")
        trace.add("detokenize", busy)
        yield answer.result(hops(trace))

    async def _prompt(self, request: ChatRequest) -> Prompt:
        if _short(request):
            return self._prompter.prompt(request.turns)
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, self._prompter.prompt, request.turns)
        finally:
            # Not at once: the request, or the error on its way to the client, still holds what it was made from.
            if self._tidying is None:
                self._tidying = loop.call_later(_TIDY_SECONDS, self._tidy)

    def _tidy(self) -> None:
        self._tidying = None
        self._threads.submit(memory.give_back)


def _short(request: ChatRequest) -> bool:
    left = _SHORT
    for turn in request.turns:
        left -= _PART * (1 + len(turn.parts))
        if left < 0:
            return False
        left -= sum(len(part.text) for part in turn.parts if isinstance(part, TextPart))
    return left >= 0


async def run(topology: Topology, instance: str | None = None) -> None:
    """Serve until told to stop."""
    memory.few_arenas()
    async with Panel.open("processor", topology, instance) as panel:
        files = await asyncio.to_thread(load, topology.model.path)
        max_context = min(files.max_context, topology.model.max_context or files.max_context)
        service = ProcessorService(topology.model.name, files, max_context, await panel.peers("decode"))
        await panel.serve(
            {"chat": operation(ChatRequest, service.chat)},
            max_context=max_context,
            # As the vocabulary spells it, which is never shorter than what it stands for.
            longest_token=max(len(token.encode()) for token in files.tokenizer.get_vocab()),
        )
        await panel.until_stopped()
