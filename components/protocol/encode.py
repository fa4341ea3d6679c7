"""prefill → encode, twice for each picture, so that nobody holds memory while a stranger's web server is slow.

``find``: a picture's whereabouts in, what it is out. Its embedding is made and cached, and held by nobody; as long as
the call stays open, encode keeps the bytes that came from a URL, to make the embedding again if it must.

``encode``: once the caller has the memory for all pictures of its request, the embedding's whereabouts. The embedding
is exposed for as long as this call stays open.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from components.protocol.common import CacheSalt, Count, Hop, ImageSource, Message


class EncodeRequest(Message):
    """``content_hash`` is what ``find`` said of the picture: then it is not fetched from its URL again, and if neither
    embedding nor bytes are here any more the answer is the error ``overloaded``.
    """

    model: str
    image: ImageSource
    cache_salt: CacheSalt = ""
    content_hash: Annotated[str, msgspec.Meta(max_length=64)] = ""


class Found(Message, kw_only=True):
    """What a picture's embedding is: ``shape`` = (tokens, width) of ``dtype`` (a numpy name such as ``float32`` or
    ``bfloat16``), C order.

    ``grid`` is (t, h, w) in patches before merging. ``revision`` names the weights and the preprocessing: a reader with
    another one must refuse. ``content_hash`` is of the picture's bytes and the request's salt.
    """

    shape: tuple[Count, Count]
    dtype: str
    grid: tuple[Count, Count, Count]
    revision: str
    content_hash: str
    hops: tuple[Hop, ...] = ()


class Embedding(Found, kw_only=True):
    """Where it can be read, too: ``record`` is the ``RdmaMetadata`` of a readable as JSON."""

    record: bytes
