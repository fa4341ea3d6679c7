"""The kinds of value a setting can hold, each with the limits that make a wrong one an error at the start."""

from __future__ import annotations

import re
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, JsonValue

_UNITS = {"": 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_SIZE = re.compile(r"(\d+) ?([A-Za-z]*)")


def _to_bytes(value: object) -> object:
    """Reads ``256MiB`` or ``1 GB``; anything else is left to the integer check."""
    if not isinstance(value, str):
        return value
    match = _SIZE.fullmatch(value.strip())
    if match is None or match[2] not in _UNITS:
        raise ValueError(f"not a size: use a number of bytes or one with a unit ({', '.join(u for u in _UNITS if u)})")
    return int(match[1]) * _UNITS[match[2]]


_ENDPOINT = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s:/@\[\]]+):(\d{1,5})", re.ASCII)


def _endpoint(value: str) -> str:
    match = _ENDPOINT.fullmatch(value)
    if match is None or not 0 < int(match[2]) < 2**16:
        raise ValueError("not host:port (an IPv6 address in brackets, no http://)")
    return value


def _nats_url(value: str) -> str:
    # Says nothing of the value: it may hold a password.
    problem = "not nats://host:port or tls://host:port"
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:
        raise ValueError(problem) from None
    rest = parts.path.strip("/") or parts.query or parts.fragment
    if parts.scheme not in ("nats", "tls") or not parts.hostname or port == 0 or rest or re.search(r"\s", value):
        raise ValueError(problem)
    return value


Bytes = Annotated[int, BeforeValidator(_to_bytes), Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[float, Field(gt=0.0)]
Device = Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")]
Endpoint = Annotated[str, AfterValidator(_endpoint)]
NatsUrl = Annotated[str, AfterValidator(_nats_url)]
# Strict mode would refuse the list that YAML gives.
Strings = Annotated[tuple[str, ...], Field(strict=False)]
Endpoints = Annotated[tuple[Endpoint, ...], Field(strict=False)]
NatsUrls = Annotated[tuple[NatsUrl, ...], Field(strict=False)]
Devices = Annotated[tuple[Device, ...], Field(strict=False)]
# What an engine is started with, by its own names: it alone knows what is right.
Arguments = dict[str, JsonValue]
# One token of a NATS subject and one part of an etcd key.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]
