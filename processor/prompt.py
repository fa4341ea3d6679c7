"""A conversation to the token ids that the model reads, one placeholder for each picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from components.messaging import CallError
from components.protocol import ErrorCode, ImagePart, ImageSource, TextPart, Turn, context_exceeded
from processor.model_files import ModelFiles
from processor.template import ChatTemplate, TemplateError
from processor.tokenizer import Guard, PromptTokenizer

Content = list[str | None]
"""A turn's texts, none of them empty, and None for each picture between them."""


@dataclass(frozen=True)
class Prompt:
    token_ids: tuple[int, ...]
    images: tuple[ImageSource, ...]


class Prompter:
    """Renders, tokenizes and checks. Raises ``CallError`` for what the model cannot be asked."""

    def __init__(self, files: ModelFiles, max_context: int) -> None:
        self._template = ChatTemplate(files.chat_template, files.special_tokens)
        self._tokenizer = PromptTokenizer(files.tokenizer)
        self._image_token_id = files.image_token_id
        self._max_context = max_context

    def prompt(self, turns: Sequence[Turn]) -> Prompt:
        images = tuple(part.image for turn in turns for part in turn.parts if isinstance(part, ImagePart))
        if images and self._image_token_id is None:
            raise _refused("This model takes no pictures.")
        # A message and a picture have at least a token each of their own.
        if len(turns) + len(images) > self._max_context:
            raise self._far_too_long()
        contents = [_content(turn) for turn in turns]
        # Twice, since it is counted in pieces: what may fit is counted exactly later.
        enough = 2 * self._max_context
        texts = [piece for content in contents for piece in content if piece is not None]
        if sum(map(len, texts)) > enough and self._tokenizer.count(texts, enough) >= enough:
            raise self._far_too_long()
        guard = self._tokenizer.guard()
        messages = [_message(turn.role, content, guard) for turn, content in zip(turns, contents, strict=True)]
        try:
            text = self._template.render(messages)
        except TemplateError as error:
            raise _refused(f"The conversation does not fit the model: {error}.") from error
        token_ids = tuple(self._tokenizer.encode(text, guard))
        if token_ids.count(self._image_token_id or -1) != len(images):
            # A template that drops or doubles pictures (in a system message, say) must not shift them silently.
            raise _refused("The model's chat template does not take pictures in these places.")
        if len(token_ids) >= self._max_context:
            raise _too_long(context_exceeded(self._max_context, len(token_ids)))
        return Prompt(token_ids, images)

    def _far_too_long(self) -> CallError:
        """Found at a cost that the context bounds, however long the conversation is."""
        return _too_long(context_exceeded(self._max_context, self._max_context, counted=False))


def _content(turn: Turn) -> Content:
    """Texts next to each other are one, before they are guarded: "<|im_" and "end|>" are harmless only apart."""
    content: Content = []
    for is_image, parts in groupby(turn.parts, lambda part: isinstance(part, ImagePart)):
        if is_image:
            content += [None for _ in parts]
        elif text := "".join(part.text for part in parts if isinstance(part, TextPart)):
            content.append(text)
    return content


def _message(role: str, content: Content, guard: Guard) -> Mapping[str, Any]:
    """OpenAI's form of a turn: text alone as a string, since templates of text models know no other."""
    if None not in content:
        return {"role": role, "content": guard.protect("".join(filter(None, content)))}
    return {
        "role": role,
        "content": [
            {"type": "image"} if piece is None else {"type": "text", "text": guard.protect(piece)} for piece in content
        ],
    }


def _refused(message: str) -> CallError:
    return CallError(ErrorCode.INVALID_REQUEST, message, param="messages")


def _too_long(message: str) -> CallError:
    return CallError(ErrorCode.CONTEXT_LENGTH_EXCEEDED, message, param="messages")
