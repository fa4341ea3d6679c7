"""Which commands ``triptych`` has, from the command itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

from components.cli.main import app


def paths() -> list[tuple[str, ...]]:
    """``("up",)``, ``("bench", "serve")``, …, the groups and the whole included."""
    return list(_below(typer.main.get_command(app), ()))


def _below(command: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    yield path
    for name, inner in getattr(command, "commands", {}).items():
        yield from _below(inner, (*path, name))
