"""The HTTP routes."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping

import msgspec
from fastapi import FastAPI, Request, Response
from starlette.types import ASGIApp

from components.config import Topology
from components.messaging import Context
from components.protocol import Role
from components.runtime import Peers
from components.telemetry import metrics as telemetry
from components.telemetry.trace import Trace
from frontend import errors, openapi
from frontend.api_types import ChatCompletionRequest, Health, Model, ModelList, Readiness
from frontend.body import read_body
from frontend.chat import Backend, ChatResponse
from frontend.health import readiness
from frontend.images import ImageShelf
from frontend.models import find, models
from frontend.request_id import RequestId
from frontend.validate import parse

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


def create_app(topology: Topology, panels: Mapping[Role, Peers], shelf: ImageShelf) -> ASGIApp:
    """``panels`` are the roles that answers need, the processor among them."""
    settings = topology.frontend
    backend = Backend(panels["processor"], shelf)
    served = models(topology.model.name, int(time.time()), topology.model.max_context)
    app = FastAPI(
        title="Triptych",
        description="Chat with pictures, in OpenAI's API.",
        docs_url=None,
        redoc_url=None,
    )
    errors.install(app)
    openapi.install(app)

    @app.post(
        "/v1/chat/completions",
        response_model=None,
        responses={200: openapi.streamed_or_not(), **openapi.errors(400, 404, 408, 413, 422, 429, 500, 503, 504)},
        openapi_extra=openapi.body(ChatCompletionRequest),
    )
    async def chat_completions(request: Request) -> Response:
        """Answer a conversation, pictures included."""
        began, trace = time.perf_counter(), Trace("frontend")
        with trace.step("read body"):
            body = await read_body(request, settings.body_limit_bytes, settings.request_timeout_seconds)
        with trace.step("validate"):
            chat = parse(body, settings.max_images)
        given = request.headers.get("traceparent", "")
        context = Context.new(
            settings.request_timeout_seconds,
            id=request.state.request_id,
            traceparent=given if _TRACEPARENT.fullmatch(given) else "",
        )
        report = bool(chat.trace) or request.headers.get("x-triptych-trace") == "1"
        return ChatResponse(backend, chat, context, trace, began, report)

    @app.get("/v1/models", response_model=None, responses={200: openapi.answer(ModelList)})
    async def list_models() -> Response:
        """The models that can be asked."""
        return _json(served)

    @app.get(
        "/v1/models/{id:path}",
        response_model=None,
        responses={200: openapi.answer(Model), **openapi.errors(404)},
    )
    async def get_model(id: str) -> Response:
        """One model."""
        return _json(find(served, id))

    @app.get("/health", response_model=None, responses={200: openapi.answer(Health)})
    async def health() -> Response:
        """Whether this process is alive; it says nothing about the panels."""
        return _json(Health())

    @app.get(
        "/ready",
        response_model=None,
        responses={200: openapi.answer(Readiness), **openapi.errors(503)},
    )
    async def ready() -> Response:
        """Whether every panel is there."""
        return _json(readiness(panels))

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Measurements of this process, for Prometheus."""
        return Response(telemetry.render(), media_type=telemetry.CONTENT_TYPE)

    return RequestId(app)


def _json(value: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
