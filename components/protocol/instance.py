"""What an instance says of itself in etcd, and where: ``/triptych/<namespace>/<role>/<instance>``."""

from __future__ import annotations

from typing import Literal

from components.protocol.common import VERSION, Count, Message

Role = Literal["frontend", "processor", "encode", "prefill", "decode"]
ROLES: tuple[Role, ...] = ("frontend", "processor", "encode", "prefill", "decode")


class Instance(Message):
    """One running process of a role. ``capacity`` is how many requests it works on at once.

    ``model`` is the served name, ``revision`` the weights' digest; both empty for roles that hold no model.
    """

    role: Role
    id: str
    subject: str
    model: str = ""
    revision: str = ""
    engine: str = ""
    capacity: Count = 1
    host: str = ""
    pid: int = 0
    protocol: int = VERSION


def subject(namespace: str, role: Role, instance: str) -> str:
    """The NATS subject on which an instance answers its operations."""
    return f"triptych.{namespace}.{role}.{instance}"
