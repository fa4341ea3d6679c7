"""The published description of the API, made from the types that check requests."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from frontend import api_types
from frontend.errors import ErrorBody

_TYPES = (
    api_types.ChatCompletionRequest,
    api_types.ChatCompletion,
    api_types.ChatCompletionChunk,
    api_types.Model,
    api_types.ModelList,
    api_types.Health,
    api_types.Readiness,
    ErrorBody,
)

_WHEN = {
    400: "A field is wrong, unknown or not supported; a picture cannot be had, decoded or is too large; the prompt is "
    "too long.",
    404: "There is no such model.",
    405: "The route does not take this method.",
    408: "The request body did not arrive in time.",
    413: "The request body, or the text in it, is too long.",
    415: "The request body is not `application/json`, or is packed.",
    429: "Too many requests or pictures are in work; `Retry-After` says when to try again.",
    500: "The server failed.",
    503: "A panel is missing, or was lost while it worked on the request; the message names it.",
    504: "The request took longer than it may.",
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For a route's ``responses``: all these answer with an ``ErrorBody``, and so does whatever else may go wrong."""
    return {
        **{status: answer(ErrorBody, _WHEN[status]) for status in statuses},
        "default": answer(ErrorBody, "Any other failure."),
    }


def answer(type: type[msgspec.Struct], description: str = HTTPStatus.OK.phrase) -> dict[str, Any]:
    """A JSON answer of this type, for a route's ``responses``."""
    return {"description": description, "content": {"application/json": {"schema": _reference(type)}}}


def streamed_or_not() -> dict[str, Any]:
    documented = answer(api_types.ChatCompletion, "The answer; with `stream` as server-sent events, `[DONE]` last.")
    documented["content"]["text/event-stream"] = {"schema": _reference(api_types.ChatCompletionChunk)}
    return documented


def body(type: type[msgspec.Struct]) -> dict[str, Any]:
    """A JSON request body of this type, for a route's ``openapi_extra``."""
    content = {"application/json": {"schema": _reference(type)}}
    return {"requestBody": {"required": True, "content": content}}


def install(app: FastAPI) -> None:
    """Makes ``/openapi.json`` complete: FastAPI knows the routes, msgspec the types."""

    def openapi() -> dict[str, Any]:
        if not app.openapi_schema:
            schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            _, types = msgspec.json.schema_components(_TYPES, ref_template="#/components/schemas/{name}")
            schema["components"] = {"schemas": types}
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI's documentation says to extend it


def _reference(type: type[msgspec.Struct]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{type.__name__}"}
