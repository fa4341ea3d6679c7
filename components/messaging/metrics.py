"""What a process measures of the request plane."""

from __future__ import annotations

from prometheus_client import Counter

from components.telemetry.metrics import REGISTRY

DROPPED = Counter("triptych_messages_dropped_total", "NATS messages that are not of the protocol.", registry=REGISTRY)
