"""Reply subjects: where an answer goes, and how the one who hears it knows what it answers.

Whoever can reach NATS can write one, so they are read strictly: what is sent there goes out in our name, and a subject
that NATS refuses would cost the connection.
"""

from __future__ import annotations

import re
import uuid

CALL_LIMIT = 2**32
"""Calls are numbered below it: a frame has four bytes for the number."""

_INBOX = re.compile(r"_INBOX\.[0-9A-Za-z_-]{1,64}")
_TOKEN = re.compile(r"[0-9a-z]{1,16}")
_CALL = re.compile(r"r(0|[1-9][0-9]{0,9})")


def new_inbox() -> str:
    """Its owner listens on ``<inbox>.*``."""
    return f"_INBOX.{uuid.uuid4().hex}"


def split_reply(reply: str) -> tuple[str, str]:
    """Inbox and token of a reply subject. Raises ``ValueError`` if it is not one of ours."""
    inbox, _, token = reply.rpartition(".")
    if not _INBOX.fullmatch(inbox) or not _TOKEN.fullmatch(token):
        raise ValueError(f"not a reply subject: {reply[:80]!r}")
    return inbox, token


def call_token(number: int) -> str:
    """The token of a request's reply subject."""
    return f"r{number}"


def call_number(token: str) -> int:
    """The number that ``call_token`` wrote. Raises ``ValueError``."""
    match = _CALL.fullmatch(token)
    number = int(match[1]) if match is not None else CALL_LIMIT
    if number >= CALL_LIMIT:
        raise ValueError(f"not the token of a call: {token[:20]!r}")
    return number
