"""An answer that outlives the decode worker that began it."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import msgspec

from components.messaging import CallError, Context
from components.protocol import (
    FinishReason,
    GenerateDone,
    GenerateItem,
    GenerateRequest,
    Hop,
    Started,
    Tokens,
    Usage,
)
from components.runtime import Peers

log = logging.getLogger(__name__)

_CONTINUATIONS = 3
"""A request that kills one worker after another must not get at all of them."""


async def generate(decoders: Peers, request: GenerateRequest, context: Context) -> AsyncGenerator[GenerateItem, None]:
    """The items of ``generate`` as one worker would have sent them all.

    When it dies in the middle, another gets the prompt with the answer so far and goes on; the draws of a sampled
    answer are those that the first would have made. Raises ``CallError``.
    """
    started: Started | None = None
    ids: list[int] = []
    continued = 0
    while True:
        try:
            items = decoders.stream("generate", _rest(request, ids), reply=GenerateItem, context=context)
            async with aclosing(items):
                async for item in items:
                    match item:
                        case Started():
                            if started is None:
                                started = item
                                yield item
                        case Tokens():
                            ids += item.ids
                            yield item
                        case GenerateDone():
                            yield item if not continued else _done(item.finish_reason, started, ids, item.hops)
                            return
            return
        except CallError as error:
            continued += 1
            if started is None or not error.retryable or continued > _CONTINUATIONS:
                raise
            log.info("request %s goes on elsewhere after %d tokens: %s", context.id, len(ids), error)
            if len(ids) == request.sampling.max_tokens:
                yield _done("length", started, ids, started.hops)
                return


def _rest(request: GenerateRequest, ids: Sequence[int]) -> GenerateRequest:
    sampling = request.sampling
    return msgspec.structs.replace(
        request,
        token_ids=(*request.token_ids, *ids),
        sampling=msgspec.structs.replace(sampling, max_tokens=sampling.max_tokens - len(ids), drawn=len(ids)),
    )


def _done(reason: FinishReason, started: Started | None, ids: Sequence[int], hops: tuple[Hop, ...]) -> GenerateDone:
    """The end of a continued answer; the last worker counted what it was told of the answer as prompt."""
    assert started is not None
    usage = Usage(prompt_tokens=started.prompt_tokens, completion_tokens=len(ids), image_tokens=started.image_tokens)
    return GenerateDone(finish_reason=reason, usage=usage, hops=hops)
