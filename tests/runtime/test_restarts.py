"""A process that had been well is started again at once; one that keeps dying more and more rarely."""

from __future__ import annotations

from components.runtime.restarts import WELL_SECONDS, Restarts, soon


def test_only_one_that_keeps_dying_waits() -> None:
    restarts = Restarts()
    assert [restarts.pause(0.0) for _ in range(8)] == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert [restarts.pause(WELL_SECONDS) for _ in range(3)] == [0.0, 0.0, 0.0]
    assert [restarts.pause(WELL_SECONDS / 2) for _ in range(3)] == [0.5, 1.0, 2.0]


def test_a_pause_in_words() -> None:
    assert [soon(0.0), soon(0.5), soon(30.0)] == ["at once", "in 0.5 s", "in 30 s"]
