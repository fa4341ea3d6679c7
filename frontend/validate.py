"""A request body to what the processor is asked; refuses what would have to be ignored."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import msgspec

from components.protocol import ChatRequest, ErrorCode, ImagePart, ImageSource, Turn
from components.protocol import TextPart as TextTurnPart
from frontend import fields
from frontend.api_types import ChatCompletionRequest, ChatMessage, ImageUrlPart, TextPart
from frontend.errors import ApiError, invalid
from frontend.limits import LONGEST_URL, Limits
from frontend.payloads import Lifted, Payload, TooLong, TooManyStrings, lift

_decoder = msgspec.json.Decoder(ChatCompletionRequest)
_URL = re.compile(r"(https?://|data:)", re.IGNORECASE)
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)", re.DOTALL)
_FROM_INSIDE = re.compile(r"images\.(\d+)")
_SHORT = 2**14
"""A body of so few bytes is looked through in less than a millisecond."""
_LONGEST_WORDS = 300
"""Characters of a client's own text that an error repeats."""


@dataclass(frozen=True)
class ImageReference:
    """A picture as the client wrote it; ``param`` says where. With a ``payload``, ``url`` is what comes before it."""

    url: str
    param: str
    payload: Payload | None = None


@dataclass(frozen=True)
class Chat:
    """A request that may be asked, and its pictures in the order of the conversation."""

    request: ChatCompletionRequest
    images: list[ImageReference]


async def validate(body: bytes | bytearray, limits: Limits) -> Chat:
    """Raises ``ApiError`` 400 that names the field, or 413. Nothing that grows with the body holds the event loop."""
    if len(body) <= _SHORT:
        return parse(_lift(body, limits), limits)
    return parse(await asyncio.to_thread(_lift, body, limits), limits)


def _lift(body: bytes | bytearray, limits: Limits) -> Lifted:
    try:
        return lift(body, limits.body_bytes, limits.strings)
    except TooLong:
        raise limits.too_long() from None
    except TooManyStrings:
        raise limits.too_many_strings() from None


def parse(lifted: Lifted, limits: Limits) -> Chat:
    """Raises ``ApiError``."""
    request = _decode(lifted.rest)
    if len(request.messages) > limits.messages:
        raise limits.too_many("messages", limits.messages, len(request.messages))
    parts = sum(len(message.content) for message in request.messages if isinstance(message.content, list))
    if parts > limits.parts:
        raise limits.too_many("messages", limits.parts, parts)
    fields.check(request, fields.SWITCHED_OFF)
    if request.stream_options is not None and not request.stream:
        raise invalid("`stream_options` is only allowed with `stream`.", "stream_options")
    for index, message in enumerate(request.messages):
        _check_message(message, f"messages.{index}")
    payloads = dict(lifted.payloads)
    images = [_reference(part, place, payloads) for place, part in _places(request) if isinstance(part, ImageUrlPart)]
    if len(images) > limits.images:
        raise invalid(f"At most {limits.images} pictures may be sent in one request.", "messages")
    _restore_texts(request, payloads, limits.body_bytes - len(lifted.rest), limits)
    if payloads:
        raise invalid("A data: URL is the `url` of a picture, and nothing else.")
    _check_length(request, limits)
    return Chat(request, images)


def _decode(body: bytes | bytearray) -> ChatCompletionRequest:
    try:
        return _decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _explained(str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise invalid(f"The request body is not valid JSON: {error}") from error
    except RecursionError as error:
        raise invalid("The request body is nested too deeply.") from error


def _explained(error: str) -> ApiError:
    # Not by a pattern: what the client wrote may look like the end of the message over and over.
    what, found, path = error.rpartition(" - at `$")
    if not found:
        what, path = error, ""
    place = re.sub(r"\[(\d+)\]", r".\1", path.removesuffix("`")).lstrip(".")
    unknown = _UNKNOWN.fullmatch(what)
    if unknown is not None:
        name = unknown[1].removesuffix("`")[:_LONGEST_WORDS]
        return invalid(f"Unrecognized request argument supplied: {name}", f"{place}.{name}".lstrip("."))
    what = what[:_LONGEST_WORDS]
    if not place:
        return invalid(f"The request body is not a valid chat request: {what}.")
    return invalid(f"{what} (at `{place}`).", place)


def _check_message(message: ChatMessage, place: str) -> None:
    fields.check(message, fields.MESSAGE_SWITCHED_OFF, f"{place}.")
    if message.content is None and message.role != "assistant":
        raise invalid(f"A message of role `{message.role}` needs `content`.", f"{place}.content")
    if message.role != "user" and isinstance(message.content, list):
        for number, part in enumerate(message.content):
            if isinstance(part, ImageUrlPart):
                words = f"Pictures belong in user messages, not in `{message.role}`."
                raise invalid(words, f"{place}.content.{number}")


def _places(request: ChatCompletionRequest) -> Iterator[tuple[str, TextPart | ImageUrlPart]]:
    """Every part of a message that is written in parts, with its place."""
    for index, message in enumerate(request.messages):
        if isinstance(message.content, list):
            for number, part in enumerate(message.content):
                yield f"messages.{index}.content.{number}", part


def _reference(part: ImageUrlPart, place: str, payloads: dict[str, Payload]) -> ImageReference:
    """Takes its payload from ``payloads``."""
    url = part.image_url.url
    if not _URL.match(url):
        raise invalid("The URL of a picture must begin with http://, https:// or data:.", place)
    if url[:5].lower() != "data:":
        if len(url) > LONGEST_URL:
            raise invalid(f"The URL of a picture may have {LONGEST_URL} characters.", place)
        return ImageReference(url, place)
    head, comma, rest = url.partition(",")
    payload = payloads.pop(rest, None) or Payload(rest.encode(), 0, len(rest.encode()))
    return ImageReference(head + comma, place, payload)


def _restore_texts(request: ChatCompletionRequest, payloads: dict[str, Payload], room: int, limits: Limits) -> None:
    """A text may begin like a ``data:`` URL as well; then it is the client's text, and counts as such."""
    if not payloads:
        return

    def restored(text: str) -> str:
        nonlocal room
        head, comma, rest = text.partition(",")
        payload = payloads.pop(rest, None)
        if payload is None:
            return text
        room -= len(payload)
        if room < 0:
            raise limits.too_long()
        try:
            return head + comma + payload.text()
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise invalid(f"The request body is not valid JSON: {error}") from error

    for message in request.messages:
        if isinstance(message.content, str):
            message.content = restored(message.content)
    for _, part in _places(request):
        if isinstance(part, TextPart):
            part.text = restored(part.text)


def _check_length(request: ChatCompletionRequest, limits: Limits) -> None:
    if not limits.max_context:
        return
    if sum(_size(text) for message in request.messages for text in _texts(message)) > limits.text_bytes:
        raise limits.context_exceeded()
    for param in ("max_tokens", "max_completion_tokens"):
        wanted = getattr(request, param)
        if wanted is not None and wanted > limits.max_context:
            code = ErrorCode.CONTEXT_LENGTH_EXCEEDED
            words = (
                f"This model's maximum context length is {limits.max_context} tokens. However, you requested {wanted} "
                "tokens in the completion alone. Please reduce the length of the completion."
            )
            raise ApiError(code.status, code, words, param=param)


def _texts(message: ChatMessage) -> Iterator[str]:
    if isinstance(message.content, str):
        yield message.content
    for part in message.content if isinstance(message.content, list) else ():
        if isinstance(part, TextPart):
            yield part.text


def _size(text: str) -> int:
    """Bytes in UTF-8."""
    return len(text) if text.isascii() else len(text.encode())


def chat_request(request: ChatCompletionRequest, images: list[ImageSource]) -> ChatRequest:
    """``images`` stand for ``Chat.images``, in the same order."""
    sources = iter(images)
    turns = tuple(Turn(role=_role(message), parts=tuple(_turn_parts(message, sources))) for message in request.messages)
    stop = request.stop or []
    limit = request.max_completion_tokens if request.max_completion_tokens is not None else request.max_tokens
    return ChatRequest(
        model=request.model,
        turns=turns,
        max_tokens=limit,
        temperature=1.0 if request.temperature is None else request.temperature,
        top_p=1.0 if request.top_p is None else request.top_p,
        seed=request.seed,
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        ignore_eos=bool(request.ignore_eos),
        cache_salt=request.cache_salt or "",
    )


def _turn_parts(message: ChatMessage, sources: Iterator[ImageSource]) -> Iterator[TextTurnPart | ImagePart]:
    if not isinstance(message.content, list):
        yield TextTurnPart(text=message.content or "")
        return
    for part in message.content:
        yield ImagePart(image=next(sources)) if isinstance(part, ImageUrlPart) else TextTurnPart(text=part.text)


def _role(message: ChatMessage) -> Literal["system", "user", "assistant"]:
    return "system" if message.role == "developer" else message.role


def client_param(param: str | None, code: str, places: list[str]) -> str | None:
    """Where in the client's request an error from further inside belongs: there, ``images.1`` is the second picture,
    whose place is the second of ``places``.
    """
    match = _FROM_INSIDE.fullmatch(param or "")
    if match is not None and int(match[1]) < len(places):
        return places[int(match[1])]
    if param is None and code.startswith("image_") and len(places) == 1:
        return places[0]
    return param
