"""Makes the record of an exposed operation. Owner thread only."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping

from .core import Core
from .errors import InvalidBuffer
from .record import DTYPES, MAX_REGIONS, AnnouncedRegion, RdmaMetadata, SerializedDescriptor, host_id
from .registration import Hold
from .states import OperationKind
from .wire import KEY_BYTES


def issue(
    core: Core,
    peer: str,
    generation: str,
    kind: OperationKind,
    hold: Hold,
    lease: float,
    *,
    reader: str | None,
    info: Mapping[str, str],
) -> RdmaMetadata:
    """The record of registered buffers. Agent metadata is left out of what ``reader`` has shown to have."""
    known = core.peers.get(reader) if reader is not None else None
    seen = known.has() if known is not None else frozenset()
    if len({region.id for region in hold.regions}) > MAX_REGIONS:
        raise InvalidBuffer(f"buffers of more than {MAX_REGIONS} registrations: put them into a pool")
    # Not validated: all of it is our own, and a validation costs as much as the rest of an exposure.
    announced = {
        region.id: AnnouncedRegion.model_construct(
            device=str(region.device),
            ptr=region.ptr,
            size=region.size,
            id=region.id,
            nixl_metadata=None if region.id in seen else region.metadata(core.agent),
        )
        for region in hold.regions
    }
    items = [
        SerializedDescriptor.model_construct(
            device=str(buffer.device),
            ptr=buffer.ptr,
            size=buffer.size,
            region=region.id,
            dtype=buffer.dtype if buffer.dtype in DTYPES else None,
            shape=buffer.shape,
        )
        for buffer, region in zip(hold.buffers, hold.regions, strict=True)
    ]
    return RdmaMetadata.model_construct(
        operation_kind=kind,
        peer=peer,
        host=host_id(),
        generation=generation,
        notification_key=secrets.token_hex(KEY_BYTES),
        descriptors=tuple(items),
        regions=tuple(announced.values()),
        lease_until=time.monotonic() + lease,
        reader=reader,
        info=dict(sorted(info.items())),
    ).sealed()
