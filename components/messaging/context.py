"""What travels with a request from panel to panel: its id, its deadline, its place in a trace."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

_ID = re.compile(r"[!-~]{1,256}")
_SECONDS = re.compile(r"[0-9]{1,12}(\.[0-9]{1,24})?")
_LONGEST = 7 * 24 * 3600.0
"""Seconds from now to the latest deadline that is believed: what waits for one is held until then."""
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


@dataclass(frozen=True, slots=True)
class Context:
    """``deadline`` is unix seconds, so the clocks of all nodes must agree (NTP). ``traceparent`` is W3C's."""

    id: str
    deadline: float
    traceparent: str

    @classmethod
    def new(cls, timeout: float, *, id: str = "", traceparent: str = "") -> Context:
        """A request that starts here and may take ``timeout`` seconds.

        An empty ``id`` becomes a fresh one; another must be visible ASCII. A well-formed ``traceparent`` (W3C's) is
        continued, anything else becomes the beginning of a trace.
        """
        if not _TRACEPARENT.fullmatch(traceparent):
            traceparent = f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"
        if id and not _ID.fullmatch(id):
            raise ValueError(f"not an id of visible ASCII characters: {id[:50]!r}")
        return cls(id or secrets.token_hex(12), time.time() + timeout, traceparent)

    def remaining(self) -> float:
        """Seconds until the deadline; never negative."""
        return max(0.0, self.deadline - time.time())

    def child(self) -> Context:
        """The same request one step further: a new span below this one."""
        version, trace, _, flags = self.traceparent.split("-")
        return replace(self, traceparent=f"{version}-{trace}-{secrets.token_hex(8)}-{flags}")

    def headers(self) -> dict[str, str]:
        return {"id": self.id, "deadline": repr(self.deadline), "traceparent": self.traceparent}

    @classmethod
    def from_headers(cls, headers: Mapping[str, str]) -> Context:
        """Raises ``ValueError`` if a header is missing or makes no sense."""
        try:
            id, deadline, trace = headers["id"], headers["deadline"], headers["traceparent"]
        except KeyError as error:
            raise ValueError(f"header {error} is missing") from None
        # Not float() alone: it takes nan, blanks, underscores and every script's digits.
        if not _ID.fullmatch(id) or not _TRACEPARENT.fullmatch(trace) or not _SECONDS.fullmatch(deadline):
            raise ValueError("bad id, deadline or traceparent")
        if float(deadline) > time.time() + _LONGEST:
            raise ValueError("the deadline is more than a week away")
        return cls(id, float(deadline), trace)
