"""Every message between panels, as typed structs: the one place where the wire is defined."""

from components.protocol.chat import (
    ChatDone,
    ChatItem,
    ChatRequest,
    FinishReason,
    ImagePart,
    TextDelta,
    TextPart,
    Turn,
)
from components.protocol.common import (
    COLDEST,
    NARROWEST,
    VERSION,
    BufferImage,
    Hop,
    ImageSource,
    Message,
    Sampling,
    UrlImage,
    Usage,
)
from components.protocol.encode import Embedding, EncodeRequest, Found
from components.protocol.errors import ErrorCode, context_exceeded
from components.protocol.generate import GenerateDone, GenerateItem, GenerateRequest, Started, Tokens
from components.protocol.instance import ROLES, Instance, Role, subject
from components.protocol.prefill import Prefilled, PrefillRequest, Reservation, ReserveRequest
from components.protocol.status import Status, StatusRequest

__all__ = [
    "COLDEST",
    "NARROWEST",
    "ROLES",
    "VERSION",
    "BufferImage",
    "ChatDone",
    "ChatItem",
    "ChatRequest",
    "Embedding",
    "EncodeRequest",
    "ErrorCode",
    "FinishReason",
    "Found",
    "GenerateDone",
    "GenerateItem",
    "GenerateRequest",
    "Hop",
    "ImagePart",
    "ImageSource",
    "Instance",
    "Message",
    "PrefillRequest",
    "Prefilled",
    "Reservation",
    "ReserveRequest",
    "Role",
    "Sampling",
    "Started",
    "Status",
    "StatusRequest",
    "TextDelta",
    "TextPart",
    "Tokens",
    "Turn",
    "UrlImage",
    "Usage",
    "context_exceeded",
    "subject",
]
