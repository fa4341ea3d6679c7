"""Token ids to text while they arrive: whole characters only, and no token decoded again and again."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

# What a decoder makes of bytes that are no character (yet).
_REPLACEMENT = "\ufffd"
# A character has at most four bytes, so only nonsense stays undecided for longer than this.
_LONG_WINDOW = 64


class Detokenizer:
    """The text of one answer, in pieces whose concatenation is the text of all its ids decoded at once.

    A token may hold a part of a character, and what a token reads as may depend on the one before it. So a short window
    of recent ids is decoded again with each step: it starts where text and tokens last ended together, one stretch
    earlier for context, and what of it was handed out already is known by its length.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._boundary = 0
        self._given = 0

    def push(self, ids: Sequence[int]) -> str:
        """More ids; returns the characters that are certain now, possibly none."""
        self._window.extend(ids)
        text = self._decode(self._window)
        # Decoders turn a character that is cut short into exactly one replacement character; all before it is settled.
        undecided = text.endswith(_REPLACEMENT)
        end = len(text) - undecided
        new = text[self._given : end]
        self._given = max(self._given, end)
        if not undecided:
            self._move_to(self._boundary)
            self._boundary = len(self._window)
        elif len(self._window) > _LONG_WINDOW:
            self._shorten(text)
        return new

    def flush(self) -> str:
        """What is left when no more ids come."""
        text = self._decode(self._window)[self._given :]
        self._given += len(text)
        return text

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def _move_to(self, start: int) -> None:
        if start:
            del self._window[:start]
            self._given = len(self._decode(self._window))

    def _shorten(self, text: str) -> None:
        """Drop the front of a window that will not settle, where that changes nothing about its text."""
        for cut in range(len(self._window) - 1, 0, -1):
            head, tail = self._decode(self._window[:cut]), self._decode(self._window[cut:])
            if tail and head + tail == text:
                del self._window[:cut]
                self._given -= len(head)
                self._boundary = 0
                return
