"""The HTTP routes."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping

import msgspec
from fastapi import FastAPI, Request, Response
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from components.config import Topology
from components.messaging import Context
from components.protocol import Role
from components.runtime import Peers
from components.telemetry import metrics as telemetry
from components.telemetry.trace import Trace
from frontend import errors, openapi
from frontend.api_types import ChatCompletionRequest, Health, Model, ModelList, Readiness
from frontend.body import read_json
from frontend.chat import Backend, ChatResponse
from frontend.health import readiness
from frontend.images import ImageShelf
from frontend.limits import LimitsInForce
from frontend.models import find, models
from frontend.paths import Paths
from frontend.request_id import RequestId
from frontend.validate import validate

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


def create_app(topology: Topology, panels: Mapping[Role, Peers], shelf: ImageShelf, limits: LimitsInForce) -> ASGIApp:
    """``panels`` are the roles that answers need, the processor among them."""
    settings = topology.frontend
    backend = Backend(panels["processor"], shelf)
    began_serving = int(time.time())
    app = FastAPI(
        title="Triptych",
        description="Chat with pictures, in OpenAI's API.",
        docs_url=None,
        redoc_url=None,
        # To a URL made of what a proxy says; ``Paths`` takes a slash at the end without.
        redirect_slashes=False,
    )
    errors.install(app)
    openapi.install(app)

    @app.post(
        "/v1/chat/completions",
        response_model=None,
        responses={200: openapi.streamed_or_not(), **openapi.errors(400, 404, 408, 413, 415, 429, 500, 503, 504)},
        openapi_extra=openapi.body(ChatCompletionRequest),
    )
    async def chat_completions(request: Request) -> Response:
        """Answer a conversation, pictures included."""
        began, trace = time.perf_counter(), Trace("frontend")
        with trace.step("read body"):
            body = await read_json(request, settings.body_limit_bytes, settings.request_timeout_seconds)
        with trace.step("validate"):
            chat = await validate(body, limits.now())
        given = request.headers.get("traceparent", "")
        context = Context.new(
            settings.request_timeout_seconds,
            id=request.state.request_id,
            traceparent=given if _TRACEPARENT.fullmatch(given) else "",
        )
        report = bool(chat.request.trace) or request.headers.get("x-triptych-trace") == "1"
        return ChatResponse(backend, chat, context, trace, began, report)

    def served() -> ModelList:
        return models(topology.model.name, began_serving, limits.max_context)

    @app.get("/v1/models", response_model=None, responses={200: openapi.answer(ModelList)})
    async def list_models() -> Response:
        """The models that can be asked."""
        return _json(served())

    @app.get(
        "/v1/models/{id:path}",
        response_model=None,
        responses={200: openapi.answer(Model), **openapi.errors(404)},
    )
    async def get_model(id: str) -> Response:
        """One model."""
        return _json(find(served(), id))

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

    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after"],
        )
    return RequestId(Paths(app))


def _json(value: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
