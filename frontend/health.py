"""``/health``: is this process alive. ``/ready``: would a request be answered."""

from __future__ import annotations

from collections.abc import Mapping

from components.protocol import ErrorCode, Role
from components.runtime import Peers
from frontend.api_types import Readiness
from frontend.errors import ApiError

NEEDED: tuple[Role, ...] = ("processor", "encode", "prefill", "decode")
"""Each of these panels has a part in every answer with a picture."""


def readiness(panels: Mapping[Role, Peers]) -> Readiness:
    """Raises ``ApiError`` 503 that names the panels with no instance."""
    counts = {str(role): len(peers.instances) for role, peers in panels.items()}
    missing = [str(role) for role, peers in panels.items() if not peers.ready]
    if not missing:
        return Readiness(panels=counts)
    error = ApiError(
        ErrorCode.UNAVAILABLE.status, ErrorCode.UNAVAILABLE, f"no {' and no '.join(missing)} instance is there"
    )
    error.body.panels, error.body.missing = counts, missing
    raise error
