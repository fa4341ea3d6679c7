"""What one request may hold. Looked at before anything grows with the input."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus

from components.config import Frontend
from components.protocol import ErrorCode, context_exceeded
from components.runtime import Peers
from frontend.errors import ApiError

_STRINGS = 16
"""More strings than a message or a part has, its keys included."""
_MESSAGE_BYTES = 64
"""What a message or a part costs on the way to the processor besides its text, in bytes."""
_IMAGE_BYTES = 4096
"""The same for a picture: its record."""

LONGEST_URL = 8192
"""Characters of a picture's ``http`` URL."""


@dataclass(frozen=True)
class Limits:
    """``body_bytes`` counts a body without the base64 of its pictures. ``max_context`` and ``text_bytes`` are what the
    model can hold, in tokens and in bytes; 0 as long as no processor has said it.
    """

    messages: int
    parts: int
    images: int
    body_bytes: int
    max_context: int = 0
    text_bytes: int = 0

    @property
    def strings(self) -> int:
        return _STRINGS * (self.messages + self.parts + 1)

    def too_long(self) -> ApiError:
        """More than ``body_bytes``: the prompt is too long, unless it is only this deployment that cannot carry it."""
        if self.text_bytes and self.text_bytes <= self.body_bytes:
            return self.context_exceeded()
        return ApiError(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            ErrorCode.BODY_TOO_LARGE,
            f"The request has more than {self.body_bytes} bytes besides its pictures.",
            param="messages",
        )

    def context_exceeded(self) -> ApiError:
        """More text than any ``max_context`` tokens stand for; how many it has nobody counts."""
        code = ErrorCode.CONTEXT_LENGTH_EXCEEDED
        message = context_exceeded(self.max_context, self.max_context, counted=False)
        return ApiError(code.status, code, message, param="messages")

    def too_many(self, param: str, allowed: int, found: int) -> ApiError:
        """In OpenAI's words."""
        return ApiError(
            HTTPStatus.BAD_REQUEST,
            "array_above_max_length",
            f"Invalid '{param}': array too long. Expected an array with maximum length {allowed}, but got an array "
            f"with length {found} instead.",
            param=param,
        )

    def too_many_strings(self) -> ApiError:
        return ApiError(
            HTTPStatus.BAD_REQUEST,
            "array_above_max_length",
            f"Invalid 'messages': array too long. Expected at most {self.messages} messages with {self.parts} parts, "
            f"but got more than {self.strings} strings.",
            param="messages",
        )


class LimitsInForce:
    """The settings', and what the processors say of their model."""

    def __init__(self, settings: Frontend, processors: Peers, largest_request: int) -> None:
        """``largest_request`` is what the bus carries, in bytes."""
        self._settings = settings
        self._processors = processors
        overhead = _MESSAGE_BYTES * (settings.max_messages + settings.max_parts) + _IMAGE_BYTES * settings.max_images
        self._body_bytes = min(settings.max_text_bytes, max(0, largest_request - overhead))
        self._max_context = self._longest_token = 0

    @property
    def max_context(self) -> int:
        """Tokens; 0 as long as no processor has said it, and the last that was said when none is there."""
        said = [each for each in self._processors.instances if each.max_context]
        if said:
            least = min(said, key=lambda each: each.max_context)
            self._max_context, self._longest_token = least.max_context, least.longest_token
        return self._max_context

    def now(self) -> Limits:
        max_context = self.max_context
        return Limits(
            messages=self._settings.max_messages,
            parts=self._settings.max_parts,
            images=self._settings.max_images,
            body_bytes=self._body_bytes,
            max_context=max_context,
            text_bytes=max_context * self._longest_token,
        )
