"""The process's metrics, in Prometheus' text form.

A module that measures something declares it on ``REGISTRY`` where it measures::

    REQUESTS = Counter("triptych_requests_total", "Requests answered.", ["code"], registry=REGISTRY)
"""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_1_0_0 as CONTENT_TYPE

__all__ = ["CONTENT_TYPE", "REGISTRY", "render"]

# The time at which each series began is one more series for each, and nobody asks for it.
disable_created_metrics()  # type: ignore[no-untyped-call]

# Our own and not the library's global one: what some imported package counts is not ours to publish.
REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)
PlatformCollector(registry=REGISTRY)


def render() -> bytes:
    """Everything measured up to now; serve it as ``CONTENT_TYPE``."""
    return generate_latest(REGISTRY)
