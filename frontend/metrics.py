"""What the frontend measures."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from components.telemetry.metrics import REGISTRY

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_STEPS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)

REQUESTS = Counter("triptych_http_requests_total", "Answered requests.", ["route", "status"], registry=REGISTRY)
ERRORS = Counter("triptych_http_errors_total", "Requests that failed, by error code.", ["code"], registry=REGISTRY)
IN_FLIGHT = Gauge("triptych_chats_in_flight", "Chat requests being answered.", registry=REGISTRY)
HANG_UPS = Counter(
    "triptych_client_hang_ups_total", "Clients that left before their answer was whole.", registry=REGISTRY
)
FIRST_TOKEN = Histogram(
    "triptych_time_to_first_token_seconds",
    "From the request's arrival to the first text.",
    buckets=_SECONDS,
    registry=REGISTRY,
)
NEXT_TOKEN = Histogram(
    "triptych_inter_token_seconds", "Between two pieces of text, per token.", buckets=_STEPS, registry=REGISTRY
)
DURATION = Histogram(
    "triptych_chat_seconds", "From the request's arrival to the end of its answer.", buckets=_SECONDS, registry=REGISTRY
)
TOKENS = Counter("triptych_tokens_total", "Tokens of finished answers.", ["kind"], registry=REGISTRY)
EXPOSED = Counter("triptych_exposed_image_bytes_total", "Bytes of pictures sent as data: URLs.", registry=REGISTRY)
