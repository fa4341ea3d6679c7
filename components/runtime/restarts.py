"""When a process that has died is started again."""

from __future__ import annotations

WELL_SECONDS = 10.0
"""Who served so long before it died had not died of its start."""

_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0


class Restarts:
    """Those of one process: at once after it had been well, more and more rarely while it keeps dying."""

    def __init__(self) -> None:
        self._next = _FIRST_PAUSE

    def pause(self, well: float) -> float:
        """Seconds to wait before the next start; ``well`` is how many it had been ready before it died."""
        if well >= WELL_SECONDS:
            self._next = _FIRST_PAUSE
            return 0.0
        pause, self._next = self._next, min(self._next * 2, _LONGEST_PAUSE)
        return pause


def soon(pause: float) -> str:
    """That pause, in a message."""
    return f"in {pause:g} s" if pause else "at once"
