"""Setting pictures aside changes nothing of what a body says."""

from __future__ import annotations

import base64
import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend.payloads import Lifted, TooLong, TooManyStrings, lift

LONG = base64.b64encode(bytes(range(256)) * 8).decode()


def lifted(body: bytes, longest: int = 100_000, strings: int = 1000) -> Lifted:
    return lift(body, longest, strings)


def restored(value: Any, found: Lifted) -> Any:
    """What the rest says, with the payloads back in their places."""
    if isinstance(value, str):
        head, comma, name = value.rpartition(",")
        return head + comma + found.payloads[name].text() if name in found.payloads else value
    if isinstance(value, list):
        return [restored(each, found) for each in value]
    if isinstance(value, dict):
        return {restored(key, found): restored(each, found) for key, each in value.items()}
    return value


def test_a_payload_is_not_in_the_rest() -> None:
    body = json.dumps({"url": f"data:image/png;base64,{LONG}", "x": ["data:,short", f'"data:x,{LONG}']}).encode()
    found = lifted(body)
    (payload,) = found.payloads.values()
    assert b"".join(payload.pieces()).decode() == LONG
    assert len(found.rest) < len(body) - len(LONG) + 40
    assert restored(json.loads(found.rest), found) == json.loads(body)


_text = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        ['"data:', "data:", ",", "\\", '\\"', f"data:image/png;base64,{LONG}", f"data:x,{LONG}\\", "é" * 2000]
    ),
)
_values = st.recursive(
    st.builds("".join, st.lists(_text, max_size=3)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_text, inner, max_size=3)),
    max_leaves=8,
)


@given(_values, st.booleans(), st.sampled_from([None, 2]))
def test_any_json_says_the_same(value: Any, ascii: bool, indent: int | None) -> None:
    body = json.dumps(value, ensure_ascii=ascii, indent=indent).encode()
    found = lifted(body)
    assert restored(json.loads(found.rest), found) == value


@given(st.binary(max_size=40), st.lists(st.sampled_from([b'"data:', b'"', b"\\", b",", b"A" * 1100]), max_size=9))
def test_any_bytes_can_be_looked_through(garbage: bytes, pieces: list[bytes]) -> None:
    lifted(garbage.join(pieces))


@pytest.mark.parametrize(
    "written",
    [
        LONG.replace("/", "\\/"),  # PHP
        "\\n".join(LONG[at : at + 76] for at in range(0, len(LONG), 76)) + "\\r\\n",  # encoders of e-mail
        LONG.replace("+", "\\u002b").replace("=", "\\u003D"),
        " " + LONG + " ",
    ],
)
def test_escapes_and_white_space(written: str) -> None:
    found = lifted(f'"data:image/png;base64,{written}"'.encode())
    (payload,) = found.payloads.values()
    assert b"".join(payload.pieces()).decode() == LONG


def test_escapes_where_pieces_meet() -> None:
    """Every place of an escape relative to the end of a piece, which is at a multiple of 2**18."""
    for shift in range(8):
        written = "A" * (2**18 - shift) + "\\u002f\\/" + "A" * 2000
        (payload,) = lifted(f'"data:,{written}"'.encode()).payloads.values()
        assert b"".join(payload.pieces()).decode() == "A" * (2**18 - shift) + "//" + "A" * 2000


def test_too_long_a_rest() -> None:
    picture = f'"data:,{LONG}"'
    body = f'["{"x" * 900}", {picture}, {picture}, {picture}]'.encode()
    assert len(lifted(body, 1100).payloads) == 3
    for longest in (900, 950):
        with pytest.raises(TooLong):
            lifted(body, longest)


@pytest.mark.parametrize("string", ["", "x", "data:,x", '"', "\\", '"data:,x'])
def test_too_many_strings(string: str) -> None:
    lifted(json.dumps([string] * 1000).encode(), strings=1000)
    with pytest.raises(TooManyStrings):
        lifted(json.dumps([string] * 4100).encode(), strings=1000)


@pytest.mark.parametrize(
    "body",
    [
        b'"data:\\"' * 4_000_000,
        b'\\"data:' * 4_000_000,
        b"\\" * 32_000_000 + b'"data:',
        (b"\\" * 1001 + b'"data:') * 32_000,
    ],
    ids=["an escaped end", "an escaped beginning", "backslashes", "runs of backslashes"],
)
def test_what_cannot_be_set_aside_is_counted_as_it_is_found(body: bytes) -> None:
    """Each took 3 to 7 s of a thread that others wait for, and only then was too long. Judged by this thread's own
    processor time, with much to spare."""
    began = time.thread_time()
    with pytest.raises((TooLong, TooManyStrings)):
        lift(body, 1_000_000, 10_000)
    assert time.thread_time() - began < 1.0
