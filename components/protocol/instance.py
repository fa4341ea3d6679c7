"""What an instance says of itself in etcd, and where: ``/triptych/<namespace>/<role>/<instance>``."""

from __future__ import annotations

from typing import Literal

from components.protocol.common import VERSION, Count, Message

Role = Literal["frontend", "processor", "encode", "prefill", "decode"]
ROLES: tuple[Role, ...] = ("frontend", "processor", "encode", "prefill", "decode")


class Instance(Message):
    """One running process of a role. ``capacity`` is how many requests it works on at once.

    ``model`` is the served name, ``revision`` the weights' digest; both empty for roles that hold no model.
    A processor says how many tokens prompt and answer may have together (``max_context``), and how many bytes of text
    one token stands for at most (``longest_token``), so that the frontend can refuse by length; 0 for other roles.
    """

    role: Role
    id: str
    subject: str
    model: str = ""
    revision: str = ""
    engine: str = ""
    capacity: Count = 1
    max_context: Count = 0
    longest_token: Count = 0
    host: str = ""
    pid: int = 0
    protocol: int = VERSION


def subject(namespace: str, role: Role, instance: str) -> str:
    """The NATS subject on which an instance answers its operations."""
    return f"triptych.{namespace}.{role}.{instance}"
