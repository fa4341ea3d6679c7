"""The kinds of value a setting can hold, each with the limits that make a wrong one an error at the start."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator, Field, JsonValue

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


Bytes = Annotated[int, BeforeValidator(_to_bytes), Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[float, Field(gt=0.0)]
Device = Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")]
# Strict mode would refuse the list that YAML gives.
Strings = Annotated[tuple[str, ...], Field(strict=False)]
Devices = Annotated[tuple[Device, ...], Field(strict=False)]
# What an engine is started with, by its own names: it alone knows what is right.
Arguments = dict[str, JsonValue]
# One token of a NATS subject and one part of an etcd key.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]
