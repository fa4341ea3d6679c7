"""Text to token ids, so that only the chat template can write special tokens.

A template and its tokenizer speak through special tokens: ``<|im_end|>`` ends a turn. Somebody who types those letters
into a message must get letters, or anybody could end a turn and speak as the system. So what users wrote is searched
for such spellings before the template sees it, each is replaced by a mark that nobody can guess, and put back as text
after the special tokens of the rendered prompt have been told apart.
"""

from __future__ import annotations

import re
import secrets

from tokenizers import Tokenizer


class Guard:
    """The special spellings found in one request, and the marks that stand for them."""

    def __init__(self, special: re.Pattern[str]) -> None:
        self._special = special
        self._nonce = secrets.token_hex(8)
        self._found: list[str] = []

    def protect(self, text: str) -> str:
        """Text from a user, fit to be put into a template."""
        return self._special.sub(self._mark, text)

    def _mark(self, match: re.Match[str]) -> str:
        self._found.append(match[0])
        # Letters and digits only: a template may trim, search or quote what it is given.
        return f"x{self._nonce}x{len(self._found) - 1}x"

    def restore(self, text: str) -> str:
        if not self._found:
            return text
        return re.sub(rf"x{self._nonce}x(\d+)x", lambda match: self._found[int(match[1])], text)


class PromptTokenizer:
    """Encodes rendered prompts. For a prompt without special spellings in it, the ids are those of
    ``tokenizer.encode(prompt, add_special_tokens=False)``: a tokenizer, too, first splits at special tokens.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids = {token.content: id for id, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        spellings = sorted(self._ids, key=len, reverse=True)
        # Without special tokens: a pattern that matches nothing.
        self._special = re.compile("|".join(map(re.escape, spellings)) or r"(?!)")
        # From now on the tokenizer itself takes all it is given for plain text.
        tokenizer.encode_special_tokens = True

    def guard(self) -> Guard:
        """A fresh one for each request."""
        return Guard(self._special)

    def encode(self, prompt: str, guard: Guard) -> list[int]:
        """The ids of a prompt rendered from protected texts."""
        ids: list[int] = []
        start = 0
        for match in self._special.finditer(prompt):
            ids += self._plain(guard.restore(prompt[start : match.start()]))
            ids.append(self._ids[match[0]])
            start = match.end()
        return ids + self._plain(guard.restore(prompt[start:]))

    def _plain(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids if text else []
        return ids
