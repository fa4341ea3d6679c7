"""Log lines of one process, on stderr, in one form."""

from __future__ import annotations

import logging
import sys
import time

# They tell of every request at "info"; what of that matters our own lines say.
_TALKATIVE = ("httpx", "httpx2", "httpcore", "httpcore2", "nats", "uvicorn.access", "transformers", "asyncio")


def setup(level: str) -> None:
    """Sends all log lines of this process to stderr, times in UTC; ``level`` is ``topology.log_level``."""
    formatter = logging.Formatter("%(asctime)s.%(msecs)03dZ %(levelname)-7s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
