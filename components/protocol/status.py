"""Anyone → any instance, operation ``status``: what does it hold right now?"""

from __future__ import annotations

from components.protocol.common import Message


class StatusRequest(Message):
    pass


class Status(Message):
    """``held`` is everything taken for requests, by name; all of it is zero when no request runs."""

    held: dict[str, int]
