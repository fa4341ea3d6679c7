"""What an instance says of itself in etcd, and where: ``/triptych/<namespace>/<role>/<instance>``."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from components.protocol.common import VERSION, Message

Role = Literal["frontend", "processor", "encode", "prefill", "decode"]
ROLES: tuple[Role, ...] = ("frontend", "processor", "encode", "prefill", "decode")

# One or more tokens of a NATS subject and one part of an etcd key, whoever wrote it.
Id = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\Z", max_length=256)]
Short = Annotated[str, msgspec.Meta(max_length=256)]
Long = Annotated[str, msgspec.Meta(max_length=1024)]
Number = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
Many = Annotated[int, msgspec.Meta(ge=1, lt=2**31)]


class Instance(Message):
    """One running process of a role. ``capacity`` is how many requests it works on at once.

    ``model`` is the served name; ``revision`` is the weights' digest, empty for roles that hold none.
    A processor says how many tokens prompt and answer may have together (``max_context``), and how many bytes of text
    one token stands for at most (``longest_token``), so that the frontend can refuse by length; 0 for other roles.
    """

    role: Role
    id: Id
    subject: Long
    model: Long = ""
    revision: Short = ""
    engine: Short = ""
    capacity: Many = 1
    max_context: Number = 0
    longest_token: Number = 0
    host: Short = ""
    pid: Number = 0
    protocol: Number = VERSION


def subject(namespace: str, role: Role, instance: str) -> str:
    """The NATS subject on which an instance answers its operations."""
    return f"triptych.{namespace}.{role}.{instance}"
