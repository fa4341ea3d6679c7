from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from processor.detokenize import Detokenizer
from tests.processor.models import make_tokenizer

TOKENIZER = make_tokenizer()
SIZE = TOKENIZER.get_vocab_size()


def bytes_of(text: str) -> list[int]:
    """One token for each byte: the worst that a model can do to a character."""
    return byte_tokens(text.encode())


def byte_tokens(data: bytes) -> list[int]:
    symbols, vocabulary = bytes_to_unicode(), TOKENIZER.get_vocab()
    return [vocabulary[symbols[byte]] for byte in data]


def bytes_to_unicode() -> dict[int, str]:
    """GPT-2's table: printable bytes stand for themselves, the rest for what comes after 255."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + i) for i, byte in enumerate(rest)}


def pieces(ids: list[int], sizes: list[int], tokenizer: Tokenizer = TOKENIZER) -> list[str]:
    """The text that comes out when ids go in by the given sizes, over and over."""
    detokenizer = Detokenizer(tokenizer)
    out, start, step = [], 0, 0
    while start < len(ids):
        size = sizes[step % len(sizes)]
        out.append(detokenizer.push(ids[start : start + size]))
        start, step = start + size, step + 1
    return [*out, detokenizer.flush()]


sizes = st.lists(st.integers(1, 5), min_size=1, max_size=4)


@given(st.text(max_size=60), sizes)
def test_text_comes_back_in_whole_characters(text: str, sizes: list[int]) -> None:
    for ids in (TOKENIZER.encode(text).ids, bytes_of(text)):
        out = pieces(ids, sizes)
        assert "".join(out) == TOKENIZER.decode(ids)
        if "\ufffd" not in text:
            assert all("\ufffd" not in piece for piece in out)


@given(st.lists(st.integers(0, SIZE - 1), max_size=120), sizes)
def test_any_ids_read_as_if_decoded_at_once(ids: list[int], sizes: list[int]) -> None:
    assert "".join(pieces(ids, sizes)) == TOKENIZER.decode(ids, skip_special_tokens=True)


_BROKEN = st.sampled_from([b"\x80", b"\xe2", b"\xe2\x82", b"\xf0\x9f", b"\xff", "€".encode(), "👍".encode(), b"a"])


@given(st.lists(_BROKEN, max_size=150), sizes)
def test_bytes_that_are_no_characters(parts: list[bytes], sizes: list[int]) -> None:
    ids = byte_tokens(b"".join(parts))
    assert "".join(pieces(ids, sizes)) == TOKENIZER.decode(ids)


def test_each_character_comes_as_soon_as_it_is_whole() -> None:
    assert pieces(bytes_of("a€b"), [1]) == ["a", "", "", "€", "b", ""]


def test_special_tokens_are_not_text() -> None:
    end = TOKENIZER.get_vocab()["<|im_end|>"]
    assert "".join(pieces([*TOKENIZER.encode("yes").ids, end], [1])) == "yes"


def test_a_cut_character_shows_at_the_end() -> None:
    assert pieces(bytes_of("€")[:2], [1]) == ["", "", "\ufffd"]


@pytest.mark.parametrize("text", ["word " * 4000, "\x80", "€"])
def test_a_long_answer_costs_the_same_for_each_token(text: str) -> None:
    """Neither a long text nor one that never settles is decoded from its beginning again and again."""
    ids = bytes_of(text) if len(text) > 1 else [bytes_of("€")[-1]] * 20_000 if text == "\x80" else bytes_of("€") * 6_000
    began = time.process_time()
    pieces(ids, [1])
    # Quadratic would be minutes.
    assert time.process_time() - began < 10
