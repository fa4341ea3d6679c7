"""Pictures from strangers: fetch, decode, limits, content hash."""

from components.media.addresses import is_public
from components.media.budget import Budget, Hold
from components.media.decode import Opened, decode, open_picture
from components.media.errors import MediaError
from components.media.fetch import Fetcher, Policy
from components.media.hash import content_hash, salted
from components.media.limits import Limits

__all__ = [
    "Budget",
    "Fetcher",
    "Hold",
    "Limits",
    "MediaError",
    "Opened",
    "Policy",
    "content_hash",
    "decode",
    "is_public",
    "open_picture",
    "salted",
]
