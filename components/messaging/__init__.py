"""The request plane: typed calls and streams between panels, over NATS."""

from components.messaging.bus import Bus
from components.messaging.calls import Stream
from components.messaging.context import Context
from components.messaging.errors import CallError, NobodyListens
from components.messaging.service import Operation, Service, operation

__all__ = ["Bus", "CallError", "Context", "NobodyListens", "Operation", "Service", "Stream", "operation"]
