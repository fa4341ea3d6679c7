"""Where memory is: host or one CUDA device."""

from __future__ import annotations

import functools
import re
from enum import IntEnum

_NAME = re.compile(r"(?:(?:cpu|host)(?::0)?|(?:cuda|gpu)(?::(?P<index>\d{1,3}))?)")


class DeviceKind(IntEnum):
    UNSPECIFIED = 0
    HOST = 1
    CUDA = 2

    @property
    def nixl_mem_type(self) -> str:
        """NIXL's name of this kind of memory."""
        if self is DeviceKind.UNSPECIFIED:
            raise ValueError("an unspecified device has no memory")
        return "DRAM" if self is DeviceKind.HOST else "VRAM"


@functools.lru_cache(256)
def _parsed(name: str) -> tuple[DeviceKind, int]:
    match = _NAME.fullmatch(name.strip().lower())
    if match is None:
        raise ValueError(f"not a device: {name!r} (expected 'cpu' or 'cuda:N')")
    on_host = name.strip().lower().startswith(("cpu", "host"))
    return DeviceKind.HOST if on_host else DeviceKind.CUDA, int(match["index"] or 0)


class Device:
    """A device: ``Device("cpu")``, ``Device("cuda:1")``, ``Device((DeviceKind.CUDA, 1))`` or ``Device(other)``.

    Immutable and hashable. ``str(device)`` is ``"cpu"`` or ``"cuda:N"``. Raises ``ValueError`` for anything else.
    """

    __slots__ = ("_id", "_kind")

    def __init__(self, spec: str | tuple[DeviceKind, int] | Device = "cpu") -> None:
        self._kind: DeviceKind
        self._id: int
        if isinstance(spec, Device):
            self._kind, self._id = spec.kind, spec.id
        elif isinstance(spec, str):
            self._kind, self._id = _parsed(spec)
        else:
            kind, index = spec
            self._kind, self._id = DeviceKind(kind), int(index)
            if self._kind is DeviceKind.UNSPECIFIED or self._id < 0 or (self.is_host and self._id):
                raise ValueError(f"not a device: {spec!r}")

    @property
    def kind(self) -> DeviceKind:
        return self._kind

    @property
    def id(self) -> int:
        """Index among the devices of its kind; 0 for the host."""
        return self._id

    @property
    def is_host(self) -> bool:
        return self._kind is DeviceKind.HOST

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and (self._kind, self._id) == (other._kind, other._id)

    def __hash__(self) -> int:
        return hash((self._kind, self._id))

    def __str__(self) -> str:
        return "cpu" if self.is_host else f"cuda:{self._id}"

    def __repr__(self) -> str:
        return f"Device({str(self)!r})"
