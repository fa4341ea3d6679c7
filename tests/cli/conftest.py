"""A folder with roles that do nothing, and ``triptych`` in it; what a test leaves running is killed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.stack import Stack, write_roles

Start = Callable[..., Stack]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_roles(tmp_path)
    return tmp_path


@pytest.fixture
def start(folder: Path) -> Iterator[Start]:
    stacks: list[Stack] = []

    def start(*arguments: str, before: str = "") -> Stack:
        stacks.append(Stack(folder, *arguments, before=before))
        return stacks[-1]

    yield start
    for stack in stacks:
        stack.close()
