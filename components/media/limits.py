"""How much of a stranger's picture a worker is willing to take."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """``max_bytes`` bounds the encoded file, ``max_pixels`` what it unfolds to; ``timeout_seconds`` is for the whole
    fetch: names, connections, redirects and body together.
    """

    max_bytes: int = 20 * 1024 * 1024
    max_pixels: int = 40_000_000
    timeout_seconds: float = 10.0
    max_redirects: int = 3
