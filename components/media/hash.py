"""The name of a picture's content."""

from __future__ import annotations

import hashlib


def content_hash(data: bytes | memoryview, salt: str = "") -> str:
    """SHA-256 of the encoded bytes, in hex: the same file is the same picture, wherever it came from.

    With another ``salt`` it is another picture, which nobody who does not know the salt can name.
    """
    digest = hashlib.sha256(data).hexdigest()
    return hashlib.sha256(f"{digest}/{salt}".encode()).hexdigest() if salt else digest
