"""The name of a picture's content."""

from __future__ import annotations

import hashlib


def content_hash(data: bytes | memoryview, salt: str = "") -> str:
    """SHA-256 of the encoded bytes, in hex: the same file is the same picture, wherever it came from.

    With another ``salt`` it is another picture, which nobody who does not know the salt can name.
    """
    return salted(hashlib.sha256(data).hexdigest(), salt)


def salted(digest: str, salt: str) -> str:
    """The ``content_hash`` of bytes whose SHA-256 is known already."""
    return hashlib.sha256(f"{digest}/{salt}".encode()).hexdigest() if salt else digest
