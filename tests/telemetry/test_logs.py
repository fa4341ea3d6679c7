"""Log lines have one form, go to stderr, and leave out what is less severe than was asked for."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator

import pytest

from components.telemetry import logs


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_a_line_has_time_level_name_and_message(capsys: pytest.CaptureFixture[str]) -> None:
    logs.setup("info")
    logging.getLogger("a.b").warning("lost %d", 3)
    output = capsys.readouterr()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z WARNING a\.b: lost 3\n", output.err)
    assert output.out == ""


def test_the_level_is_the_least_that_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    logs.setup("warning")
    logging.getLogger("a.b").info("quiet")
    assert capsys.readouterr().err == ""
    logs.setup("debug")
    logging.getLogger("a.b").debug("loud")
    assert "loud" in capsys.readouterr().err


def test_libraries_that_tell_of_every_request_only_warn(capsys: pytest.CaptureFixture[str]) -> None:
    logs.setup("info")
    logging.getLogger("httpx").info("GET /")
    logging.getLogger("httpx").warning("slow")
    assert capsys.readouterr().err.count("\n") == 1
