"""What can be wrong with somebody's picture."""

from __future__ import annotations

from typing import Literal

MediaErrorCode = Literal["image_undecodable", "image_too_large", "image_unreachable", "overloaded"]


class MediaError(Exception):
    """A picture that cannot be used. ``message`` is for the person who sent it: no addresses, no paths, no payload."""

    def __init__(self, code: MediaErrorCode, message: str) -> None:
        super().__init__(message)
        self.code: MediaErrorCode = code
        self.message = message
