"""A conversation to the token ids that the model reads, one placeholder for each picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from components.messaging import CallError
from components.protocol import ErrorCode, ImagePart, ImageSource, Turn, context_exceeded
from processor.model_files import ModelFiles
from processor.template import ChatTemplate, TemplateError
from processor.tokenizer import Guard, PromptTokenizer


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
        guard = self._tokenizer.guard()
        try:
            text = self._template.render([_message(turn, guard) for turn in turns])
        except TemplateError as error:
            raise _refused(f"The conversation does not fit the model: {error}.") from error
        token_ids = tuple(self._tokenizer.encode(text, guard))
        if token_ids.count(self._image_token_id or -1) != len(images):
            # A template that drops or doubles pictures (in a system message, say) must not shift them silently.
            raise _refused("The model's chat template does not take pictures in these places.")
        if len(token_ids) >= self._max_context:
            raise CallError(
                ErrorCode.CONTEXT_LENGTH_EXCEEDED,
                context_exceeded(self._max_context, len(token_ids)),
                param="messages",
            )
        return Prompt(token_ids, images)


def _message(turn: Turn, guard: Guard) -> Mapping[str, Any]:
    """OpenAI's form of a turn: text alone as a string, since templates of text models know no other."""
    content: list[dict[str, str]] = []
    text = ""
    # Texts next to each other are joined before they are guarded: "<|im_" and "end|>" are harmless only apart.
    for part in turn.parts:
        if isinstance(part, ImagePart):
            content += _text(text, guard)
            content.append({"type": "image"})
            text = ""
        else:
            text += part.text
    if not content:
        return {"role": turn.role, "content": guard.protect(text)}
    return {"role": turn.role, "content": content + _text(text, guard)}


def _text(text: str, guard: Guard) -> list[dict[str, str]]:
    return [{"type": "text", "text": guard.protect(text)}] if text else []


def _refused(message: str) -> CallError:
    return CallError(ErrorCode.INVALID_REQUEST, message, param="messages")
