"""Log lines that strangers can cause: many of them are one line with a count."""

from __future__ import annotations

import logging
import time

_BURST = 20
_SECONDS = 5.0


class Seldom:
    """At most ``_BURST`` lines in every ``_SECONDS``; the first one after a silence says how many were left out."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._since = -_SECONDS
        self._lines = 0

    def warning(self, text: str, *arguments: object) -> None:
        now = time.monotonic()
        if now - self._since >= _SECONDS:
            left_out = self._lines - _BURST
            if left_out > 0:
                self._log.warning("%d more lines like these were left out", left_out)
            self._since, self._lines = now, 0
        self._lines += 1
        if self._lines <= _BURST:
            self._log.warning(text, *arguments)
