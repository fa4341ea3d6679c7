"""From a topology file and its overrides to checked settings."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from components.config.errors import ConfigError
from components.config.source import Source, apply_environment, apply_sets, read_yaml, suggest
from components.config.topology import Topology


def load(
    path: Path | None,
    overrides: Sequence[str] = (),
    environ: Mapping[str, str] = os.environ,
) -> Topology:
    """Reads ``path`` (None: all defaults), then the environment, then ``overrides`` (``a.b=c``): the later wins.

    Raises ConfigError, one line for each problem, each with its place.
    """
    source = read_yaml(path) if path is not None else Source()
    apply_environment(source, Topology, environ)
    apply_sets(source, Topology, overrides)
    try:
        return Topology.model_validate(source.values)
    except ValidationError as error:
        problems = [_explain(source, detail["loc"], detail["type"], detail["msg"]) for detail in error.errors()]
        raise ConfigError("\n".join(problems)) from error


def _explain(source: Source, location: tuple[str | int, ...], kind: str, message: str) -> str:
    key = ".".join(str(part) for part in location)
    where = source.origin(location)
    if kind == "extra_forbidden":
        message = f"no such setting{suggest(str(location[-1]), _siblings(location))}"
    message = message.removeprefix("Value error, ")
    text = f"{key}: {message[:1].lower()}{message[1:]}"
    return f"{where}: {text}" if where else text


def _siblings(location: tuple[str | int, ...]) -> list[str]:
    """The settings that exist beside the one at ``location``."""
    model: Any = Topology
    for part in location[:-1]:
        model = model.model_fields[str(part)].annotation
    return list(model.model_fields) if issubclass(model, BaseModel) else []
