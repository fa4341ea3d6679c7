"""prefill → encode, operation ``encode``: a picture's whereabouts in, its embedding's whereabouts out."""

from __future__ import annotations

from components.protocol.common import CacheSalt, Count, Hop, ImageSource, Message


class EncodeRequest(Message):
    model: str
    image: ImageSource
    cache_salt: CacheSalt = ""


class Embedding(Message):
    """Where a picture's embedding can be read, and what it is.

    ``record`` is the ``RdmaMetadata`` of a readable as JSON; the buffer is ``shape`` = (tokens, width) of ``dtype``
    (a numpy name such as ``float32`` or ``bfloat16``), C order. ``grid`` is (t, h, w) in patches before merging.
    ``revision`` names the weights and the preprocessing: a reader with another one must refuse. ``content_hash`` is of
    the picture's bytes and the request's salt.
    """

    record: bytes
    shape: tuple[Count, Count]
    dtype: str
    grid: tuple[Count, Count, Count]
    revision: str
    content_hash: str
    hops: tuple[Hop, ...] = ()
