"""Every error that crosses a panel boundary, by name."""

from __future__ import annotations

from enum import StrEnum
from http import HTTPStatus


class ErrorCode(StrEnum):
    """What went wrong, in a word that is stable on the wire and in metrics.

    The member's ``status`` is the HTTP status the frontend answers with when the error comes before the first byte.
    """

    INVALID_REQUEST = "invalid_request"
    MODEL_NOT_FOUND = "model_not_found"
    CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
    BODY_TOO_LARGE = "body_too_large"
    IMAGE_UNDECODABLE = "image_undecodable"
    IMAGE_TOO_LARGE = "image_too_large"
    IMAGE_UNREACHABLE = "image_unreachable"
    OVERLOADED = "overloaded"
    UNAVAILABLE = "unavailable"
    PEER_LOST = "peer_lost"
    TRANSFER_FAILED = "transfer_failed"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    CANCELLED = "cancelled"
    INTERNAL = "internal"

    @property
    def status(self) -> HTTPStatus:
        return _STATUS[self]


_STATUS = {
    ErrorCode.INVALID_REQUEST: HTTPStatus.BAD_REQUEST,
    ErrorCode.MODEL_NOT_FOUND: HTTPStatus.NOT_FOUND,
    ErrorCode.CONTEXT_LENGTH_EXCEEDED: HTTPStatus.BAD_REQUEST,
    ErrorCode.BODY_TOO_LARGE: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    ErrorCode.IMAGE_UNDECODABLE: HTTPStatus.BAD_REQUEST,
    ErrorCode.IMAGE_TOO_LARGE: HTTPStatus.BAD_REQUEST,
    # As OpenAI does: the client has to change its request, and what clients do about that goes by 400.
    ErrorCode.IMAGE_UNREACHABLE: HTTPStatus.BAD_REQUEST,
    ErrorCode.OVERLOADED: HTTPStatus.TOO_MANY_REQUESTS,
    ErrorCode.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    ErrorCode.PEER_LOST: HTTPStatus.SERVICE_UNAVAILABLE,
    ErrorCode.TRANSFER_FAILED: HTTPStatus.SERVICE_UNAVAILABLE,
    ErrorCode.DEADLINE_EXCEEDED: HTTPStatus.GATEWAY_TIMEOUT,
    # 499 is nginx's "client closed request"; nobody is left to read it.
    ErrorCode.CANCELLED: HTTPStatus.REQUEST_TIMEOUT,
    ErrorCode.INTERNAL: HTTPStatus.INTERNAL_SERVER_ERROR,
}


def context_exceeded(context: int, prompt: int, answer: int = 1, *, counted: bool = True) -> str:
    """The message of ``CONTEXT_LENGTH_EXCEEDED`` in OpenAI's own words, which clients search for.

    ``context`` is the most tokens that prompt and answer may have together, ``answer`` how many are wanted (one is the
    least). With ``counted`` false the prompt was refused by its length alone: it has more than ``prompt`` tokens.
    """
    limit = f"This model's maximum context length is {context} tokens. However, "
    if not counted or prompt > context:
        more = "" if counted else "more than "
        return f"{limit}your messages resulted in {more}{prompt} tokens. Please reduce the length of the messages."
    return (
        f"{limit}you requested {prompt + answer} tokens ({prompt} in the messages, {answer} in the completion). "
        "Please reduce the length of the messages or completion."
    )
