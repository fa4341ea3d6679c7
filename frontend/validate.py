"""A request body to what the processor is asked; refuses what would have to be ignored."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import msgspec

from components.protocol import ChatRequest, ImagePart, ImageSource, Turn
from components.protocol import TextPart as TextTurnPart
from frontend.api_types import SWITCHED_OFF, ChatCompletionRequest, ChatMessage, ImageUrlPart, TextPart
from frontend.errors import ApiError, invalid

_decoder = msgspec.json.Decoder(ChatCompletionRequest)
_PLACE = re.compile(r"^(?P<what>.*) - at `\$(?P<path>.*)`$", re.DOTALL)
_URL = re.compile(r"(https?://|data:)", re.IGNORECASE)
_FROM_INSIDE = re.compile(r"images\.(\d+)")


@dataclass(frozen=True)
class ImageReference:
    """A picture as the client wrote it; ``param`` says where."""

    url: str
    param: str


def parse(body: bytes | bytearray, max_images: int) -> ChatCompletionRequest:
    """Raises ``ApiError`` 400, naming the field."""
    try:
        request = _decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _explained(str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise invalid(f"The request body is not valid JSON: {error}") from error
    except RecursionError as error:
        raise invalid("The request body is nested too deeply.") from error
    for name, harmless in SWITCHED_OFF.items():
        value = getattr(request, name)
        # 1 == True in Python; no field allows both.
        if value is not None and not any(value == each and type(value) is type(each) for each in harmless):
            if isinstance(value, float) and value in harmless:
                continue
            raise invalid(f"`{name}` is not supported.", name)
    if request.stream_options is not None and not request.stream:
        raise invalid("`stream_options` is only allowed with `stream`.", "stream_options")
    for index, message in enumerate(request.messages):
        _check_message(message, f"messages.{index}")
    if len(image_references(request)) > max_images:
        raise invalid(f"At most {max_images} pictures may be sent in one request.", "messages")
    return request


def _explained(error: str) -> ApiError:
    match = _PLACE.match(error)
    if match is None:
        return invalid(f"The request body is not a valid chat request: {error}.")
    param = re.sub(r"\[(\d+)\]", r".\1", match["path"]).lstrip(".")
    return invalid(f"{match['what']} (at `{param}`).", param)


def _check_message(message: ChatMessage, param: str) -> None:
    for name in ("tool_calls", "function_call"):
        if getattr(message, name) not in (None, []):
            raise invalid("Tool calls are not supported.", f"{param}.{name}")
    for number, part in _parts(message):
        if isinstance(part, ImageUrlPart):
            where = f"{param}.content.{number}"
            if message.role != "user":
                raise invalid(f"Pictures belong in user messages, not in `{message.role}`.", where)
            if not _URL.match(part.image_url.url):
                raise invalid("The URL of a picture must begin with http://, https:// or data:.", where)


def _parts(message: ChatMessage) -> Iterator[tuple[int, TextPart | ImageUrlPart]]:
    content = [TextPart(message.content)] if isinstance(message.content, str) else message.content
    return enumerate(content)


def image_references(request: ChatCompletionRequest) -> list[ImageReference]:
    """Every picture of the conversation, in order."""
    return [
        ImageReference(part.image_url.url, f"messages.{index}.content.{number}")
        for index, message in enumerate(request.messages)
        for number, part in _parts(message)
        if isinstance(part, ImageUrlPart)
    ]


def chat_request(request: ChatCompletionRequest, images: list[ImageSource]) -> ChatRequest:
    """``images`` stand for ``image_references(request)``, in the same order."""
    sources = iter(images)
    turns = tuple(
        Turn(
            role=_role(message),
            parts=tuple(
                ImagePart(image=next(sources)) if isinstance(part, ImageUrlPart) else TextTurnPart(text=part.text)
                for _, part in _parts(message)
            ),
        )
        for message in request.messages
    )
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


def _role(message: ChatMessage) -> Literal["system", "user", "assistant"]:
    return "system" if message.role == "developer" else message.role


def client_param(param: str | None, code: str, images: list[ImageReference]) -> str | None:
    """Where in the client's request an error from further inside belongs: there, ``images.1`` is the second picture."""
    match = _FROM_INSIDE.fullmatch(param or "")
    if match is not None and int(match[1]) < len(images):
        return images[int(match[1])].param
    if param is None and code.startswith("image_") and len(images) == 1:
        return images[0].param
    return param
