"""Token ids coming back, as the text a client sees."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

from components.protocol import (
    ChatDone,
    FinishReason,
    GenerateDone,
    GenerateItem,
    Hop,
    Started,
    TextDelta,
    Tokens,
    Usage,
)
from processor.detokenize import Detokenizer
from processor.stops import StopStrings


class Answer:
    """One answer while it grows; ``over`` once a stop string is found or the engine has ended it."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str], prompt_tokens: int) -> None:
        self._text = Detokenizer(tokenizer)
        self._stops = StopStrings(stops)
        # Until prefill has said how many tokens the pictures are.
        self._started = Started(prompt_tokens=prompt_tokens)
        self._done: GenerateDone | None = None
        self._tokens = 0
        self._unsent_tokens = 0

    @property
    def over(self) -> bool:
        return self._stops.hit or self._done is not None

    def take(self, items: Sequence[GenerateItem]) -> TextDelta | None:
        """What has come, in order. None while it makes no whole character, or may begin a stop string."""
        ids: list[int] = []
        for item in items:
            match item:
                case Started():
                    self._started = item
                case Tokens():
                    ids += item.ids
                case GenerateDone():
                    self._done = item
        self._tokens += len(ids)
        self._unsent_tokens += len(ids)
        text = self._stops.push(self._text.push(ids))
        if self._done is not None:
            text += self._stops.push(self._text.flush()) + self._stops.flush()
        if not text:
            return None
        tokens, self._unsent_tokens = self._unsent_tokens, 0
        return TextDelta(text=text, tokens=tokens)

    def result(self, hops: tuple[Hop, ...]) -> ChatDone:
        """How it ended and what it cost; ``hops`` are the processor's own."""
        reason: FinishReason = "stop"
        if self._done is None:
            usage = Usage(
                prompt_tokens=self._started.prompt_tokens,
                completion_tokens=self._tokens,
                image_tokens=self._started.image_tokens,
            )
            return ChatDone(finish_reason=reason, usage=usage, hops=(*hops, *self._started.hops))
        if not self._stops.hit:
            reason = self._done.finish_reason
        return ChatDone(finish_reason=reason, usage=self._done.usage, hops=(*hops, *self._done.hops))
