"""How a role tells the supervisor that started it that it can take requests."""

from __future__ import annotations

import os

READY_FD = "TRIPTYCH_READY_FD"


def announce_ready() -> None:
    """Writes ``ready`` to the pipe that ``triptych up`` left open; does nothing in a process started alone.

    Called by each panel's ``run`` once it is registered and answers.
    """
    # Popped: the pipe is closed here, and a second call or a grandchild must not write to whatever reuses its number.
    number = os.environ.pop(READY_FD, None)
    if number is None:
        return
    with os.fdopen(int(number), "wb", buffering=0) as pipe:
        pipe.write(b"ready\n")
