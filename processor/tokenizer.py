"""Text to token ids, so that only the chat template can write special tokens.

A template and its tokenizer speak through special tokens: ``<|im_end|>`` ends a turn. Somebody who types those letters
into a message must get letters, or anybody could end a turn and speak as the system. So what users wrote is searched
for such spellings before the template sees it, each is replaced by a mark that nobody can guess, and put back as text
after the special tokens of the rendered prompt have been told apart.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Sequence
from typing import Any

from tokenizers import Encoding, Tokenizer

# Long texts are counted in pieces of so many characters, each of which takes some milliseconds.
_PIECE = 16_384
# Texts are handed to the tokenizer so many at a time: it holds the interpreter while it takes and returns them.
_BATCH = 1024


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
        self._special = re.compile(_any_of(self._ids))
        # From now on the tokenizer itself takes all it is given for plain text.
        tokenizer.encode_special_tokens = True

    def guard(self) -> Guard:
        """A fresh one for each request."""
        return Guard(self._special)

    def encode(self, prompt: str, guard: Guard) -> list[int]:
        """The ids of a prompt rendered from protected texts."""
        pieces: list[str | int] = []
        start = 0
        for match in self._special.finditer(prompt):
            pieces += (guard.restore(prompt[start : match.start()]), self._ids[match[0]])
            start = match.end()
        pieces.append(guard.restore(prompt[start:]))
        plain = iter(self._encode([piece for piece in pieces if piece and isinstance(piece, str)]))
        ids: list[int] = []
        for piece in pieces:
            if isinstance(piece, int):
                ids.append(piece)
            elif piece:
                ids += next(plain).ids
        return ids

    def count(self, texts: Iterable[str], enough: int) -> int:
        """About how many tokens the texts are, counted no further than ``enough``.

        A long text is counted in pieces, so that little work is done for one that is too long; each cut may add a
        token or two.
        """
        tokens = 0
        for text in texts:
            for start in range(0, len(text), _PIECE):
                (piece,) = self._encode([text[start : start + _PIECE]])
                tokens += len(piece)
                if tokens >= enough:
                    return tokens
        return tokens

    def _encode(self, texts: Sequence[str]) -> list[Encoding]:
        encodings: list[Encoding] = []
        for start in range(0, len(texts), _BATCH):
            # Not `encode`, which holds the interpreter for as long as it takes: a second for a megabyte.
            encodings += self._tokenizer.encode_batch_fast(texts[start : start + _BATCH], add_special_tokens=False)
        return encodings


def _any_of(spellings: Iterable[str]) -> str:
    """A pattern that finds the longest of the spellings, in time that does not grow with their number.

    Plain alternatives would all be tried wherever a text begins like one of them, and some models have hundreds.
    """
    tree: dict[str, Any] = {}
    for spelling in filter(None, spellings):
        node = tree
        for letter in spelling:
            node = node.setdefault(letter, {})
        node[""] = {}
    # Without special tokens: a pattern that matches nothing.
    return _pattern(tree) if tree else r"(?!)"


def _pattern(tree: dict[str, Any]) -> str:
    letters = [re.escape(letter) + _pattern(rest) for letter, rest in tree.items() if letter]
    if not letters:
        return ""
    if len(letters) == 1 and "" not in tree:
        return letters[0]
    # Greedy: the longer spelling, where one goes on where another ends.
    return f"(?:{'|'.join(letters)})" + ("?" if "" in tree else "")
