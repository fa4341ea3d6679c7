"""The model's chat template, rendered exactly as transformers renders it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox


class TemplateError(Exception):
    """The template refuses this conversation; the message is the template's own."""


# What Python itself raises when a template does with a conversation what it was not made for (adds text to a list, …).
_UNFIT = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError)


class _Generation(jinja2.ext.Extension):
    """``{% generation %}`` marks what the assistant says, for training; here it is only its content."""

    tags = {"generation"}  # noqa: RUF012 (as jinja2 declares it)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """``special_tokens`` are what the template may name: ``bos_token`` and its like."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        # A template comes with a model from anywhere: it runs in a sandbox and cannot change what it is given.
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = _now
        self._template = environment.from_string(source)
        self._special_tokens = dict(special_tokens)

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Messages as OpenAI writes them → the prompt, up to where the answer begins. Raises ``TemplateError``."""
        try:
            return self._template.render(
                messages=messages, tools=None, documents=None, add_generation_prompt=True, **self._special_tokens
            )
        except jinja2.TemplateError as error:
            raise TemplateError(str(error)) from error
        except _UNFIT as error:
            raise TemplateError(f"the model's chat template cannot render this conversation ({error})") from error


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes for HTML, which no model was trained on.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _now(format: str) -> str:
    return datetime.now().strftime(format)
