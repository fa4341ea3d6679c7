"""A record's buffers and the local ones for them: do they fit, which lane do they take, which go together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .agent import Span
from .descriptor import Descriptor
from .device import Device
from .errors import InvalidBuffer
from .record import RdmaMetadata, host_id
from .registration import Hold
from .states import OperationKind


def match(record: RdmaMetadata, buffers: Sequence[Descriptor]) -> None:
    """Raise ``InvalidBuffer`` unless the local buffers fit the record's, one for one."""
    if len(buffers) != len(record.descriptors):
        raise InvalidBuffer(f"{len(buffers)} local buffers for a record of {len(record.descriptors)}")
    for index, (buffer, item) in enumerate(zip(buffers, record.descriptors, strict=True)):
        if buffer.size != item.size:
            raise InvalidBuffer(f"buffer {index} has {buffer.size} bytes here and {item.size} there")
        if record.operation_kind is OperationKind.READ and not buffer.writable:
            raise InvalidBuffer(f"buffer {index} is read-only and cannot be a destination")


def lane_of(buffers: Iterable[Descriptor], record: RdmaMetadata) -> str:
    """The lane's name: kind of memory here and there, ``+staged`` through bounce buffers, ``@net`` between hosts."""
    here = {"cpu" if buffer.device.is_host else "cuda" for buffer in buffers}
    there = {item.device.partition(":")[0] for item in record.descriptors}
    name = f"{'+'.join(sorted(here))}-{'+'.join(sorted(there))}"
    if record.host != host_id():
        return f"{name}@net"
    return name if here == there else f"{name}+staged"


@dataclass(slots=True)
class Part:
    """Buffers that go in one NIXL transfer: all of one device here and one device there."""

    indices: list[int]
    local_device: Device
    remote_device: Device


def parts(buffers: Sequence[Descriptor], record: RdmaMetadata, indices: Iterable[int]) -> list[Part]:
    found: dict[tuple[Device, str], Part] = {}
    for index in indices:
        here, there = buffers[index].device, record.descriptors[index].device
        part = found.get((here, there))
        if part is None:
            part = found[here, there] = Part([], here, Device(there))
        part.indices.append(index)
    return list(found.values())


def spans(hold: Hold, record: RdmaMetadata, part: Part) -> tuple[list[Span], list[Span]]:
    """Of a part, here and there. What lies side by side within one registration on both sides is one span: NIXL posts
    each by itself, and to a GPU one costs 7 µs."""
    here, there = part.local_device.id, part.remote_device.id
    local: list[Span] = []
    remote: list[Span] = []
    before = None
    for index in part.indices:
        buffer, item = hold.buffers[index], record.descriptors[index]
        regions = hold.regions[index], item.region
        if regions == before and sum(local[-1][:2]) == buffer.ptr and sum(remote[-1][:2]) == item.ptr:
            local[-1] = (local[-1][0], local[-1][1] + buffer.size, here)
            remote[-1] = (remote[-1][0], remote[-1][1] + item.size, there)
        else:
            local.append((buffer.ptr, buffer.size, here))
            remote.append((item.ptr, item.size, there))
        before = regions
    return local, remote
