"""The word that a role is ready reaches the pipe once, and nothing else does."""

from __future__ import annotations

import os

import pytest

from components.telemetry.ready import READY_FD, announce_ready


def test_says_it_once_and_closes_the_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, child_end = os.pipe()
    monkeypatch.setenv(READY_FD, str(child_end))
    announce_ready()
    announce_ready()
    with os.fdopen(pipe, "rb") as reader:
        assert reader.read() == b"ready\n"
    assert READY_FD not in os.environ


def test_says_nothing_when_started_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(READY_FD, raising=False)
    announce_ready()
