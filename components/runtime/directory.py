"""What is read from etcd is what somebody wrote there: which entries are instances that requests may go to."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from components.protocol import VERSION, Instance, Role, subject

_ENTRY_BYTES = 8192
"""Several times what the longest ``Instance`` needs."""

_decode = msgspec.json.Decoder(Instance).decode


def directory(namespace: str, role: Role, model: str = "", revision: str = "") -> Callable[[str, bytes], Instance]:
    """For ``Registry.watch``: takes instances of ``role``; with ``model`` or ``revision`` only those that serve it.

    An entry has its subject by its key alone, so that nobody can register what leads to somebody else. Raises
    ``ValueError`` that says what is wrong with an entry.
    """

    def read(id: str, value: bytes) -> Instance:
        if len(value) > _ENTRY_BYTES:
            raise ValueError(f"{len(value)} bytes, and an instance has at most {_ENTRY_BYTES}")
        instance = _decode(value)
        expected: dict[str, object] = {
            "protocol": VERSION,
            "role": role,
            "id": id,
            "subject": subject(namespace, role, id),
            "model": model or instance.model,
            "revision": revision or instance.revision,
        }
        for name, ours in expected.items():
            if (theirs := getattr(instance, name)) != ours:
                raise ValueError(f"its {name} is {theirs!r}, not {ours!r}")
        return instance

    return read
