"""The name of a picture's content."""

from __future__ import annotations

import hashlib


def content_hash(data: bytes | memoryview) -> str:
    """SHA-256 of the encoded bytes, in hex: the same file is the same picture, wherever it came from."""
    return hashlib.sha256(data).hexdigest()
