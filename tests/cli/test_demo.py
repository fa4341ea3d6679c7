"""``triptych demo``: a question about the picture in the repository, its answer, the way it took."""

from __future__ import annotations

import signal
from pathlib import Path

from components.cli.demo import PICTURE, QUESTION
from tests.cli.conftest import Start
from tests.cli.stack import ports


def test_the_picture_is_in_the_repository() -> None:
    assert PICTURE.is_file()


def test_once_stops_after_the_answer(start: Start) -> None:
    stack = start("demo", "--once", *ports())
    assert stack.end(60.0) == 0
    stack.gone()
    assert f"{QUESTION}  (examples/pictures/shapes.png)" in stack.output
    assert "A red circle." in stack.lines
    row = next(line.split() for line in stack.lines if "encode  encode" in line)
    assert row[:6] == ["0.0", "encode", "encode", "2.5", "1,234", "shm"]


def test_it_goes_on_answering_until_it_is_stopped(start: Start) -> None:
    stack = start("demo", *ports())
    stack.wait_for("goes on answering until Ctrl-C")
    stack.wait_for("curl")
    assert stack.process.poll() is None
    stack.send(signal.SIGTERM)
    assert stack.end() == 0
    stack.gone()


def test_no_answer_is_a_failure(start: Start, folder: Path) -> None:
    (folder / "mute").touch()
    stack = start("demo", "--once", *ports())
    assert stack.end(60.0) == 1
    assert "the connection ended before the answer did" in stack.output
    stack.gone()
