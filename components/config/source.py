"""Values and where each came from: a YAML file by line and column, an environment variable, a ``--set``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel

from components.config.errors import ConfigError

Key = tuple[str, ...]
PREFIX = "TRIPTYCH_"
# Two underscores between section and key. One would not do: for a service called triptych-frontend Kubernetes gives
# every container TRIPTYCH_FRONTEND_PORT=tcp://…
SEPARATOR = "__"


@dataclass
class Source:
    """A tree of plain values, and the origin of each key in it."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[tuple[str | int, ...], str] = field(default_factory=dict)

    def put(self, key: Key, value: object, origin: str) -> None:
        """Sets one key, over what was there."""
        node = self.values
        for part in key[:-1]:
            inner = node.get(part)
            if not isinstance(inner, dict):
                inner = node[part] = {}
            node = inner
        node[key[-1]] = value
        self.origins = {known: where for known, where in self.origins.items() if known[: len(key)] != key}
        self.origins[key] = origin

    def origin(self, location: Sequence[str | int]) -> str | None:
        """Where the value at ``location`` came from, or the nearest thing around it that has an origin."""
        for end in range(len(location), 0, -1):
            where = self.origins.get(tuple(location[:end]))
            if where is not None:
                return where
        return None


def keys(model: type[BaseModel], prefix: Key = ()) -> Iterator[tuple[Key, Any]]:
    """Every setting below ``model`` that is not a section, with its type."""
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from keys(info.annotation, (*prefix, name))
        else:
            yield (*prefix, name), info.annotation


def variable(key: Key) -> str:
    """The environment variable that overrides ``key``."""
    return PREFIX + SEPARATOR.join(key).upper()


def read_yaml(path: Path) -> Source:
    """Reads one file; raises ConfigError with line and column for what is not YAML or names a key twice."""
    source = Source()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return source
        if not isinstance(root, yaml.MappingNode):
            raise ConfigError(f"{path}:{_position(root)}: the file must hold keys and values")
        source.values = _build(loader, root, (), source.origins, path)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise ConfigError(f"{path}{where}: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: {error}") from error
    finally:
        loader.dispose()
    return source


def _position(node: yaml.Node) -> str:
    return f"{node.start_mark.line + 1}:{node.start_mark.column + 1}"


def _build(
    loader: yaml.SafeLoader,
    node: yaml.Node,
    location: tuple[str | int, ...],
    origins: dict[tuple[str | int, ...], str],
    path: Path,
) -> Any:
    origins.setdefault(location, f"{path}:{_position(node)}")
    if isinstance(node, yaml.MappingNode):
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key is None or key in values:
                problem = "a key must be a plain word" if key is None else f"{key} is given twice"
                raise ConfigError(f"{path}:{_position(key_node)}: {problem}")
            origins[*location, key] = f"{path}:{_position(key_node)}"
            values[key] = _build(loader, value_node, (*location, key), origins, path)
        return values
    if isinstance(node, yaml.SequenceNode):
        return [_build(loader, item, (*location, i), origins, path) for i, item in enumerate(node.value)]
    return loader.construct_object(node, deep=True)


def parse(text: str, annotation: Any) -> object:
    """A value written on one line: text for text, ``a,b`` or ``[a, b]`` for lists, YAML for the rest.

    ``null`` stands for "left out" where the setting allows that.
    """
    choices = get_args(annotation)
    if type(None) in choices and text in ("", "null"):
        return None
    if annotation is str or (str in choices and get_origin(annotation) not in (tuple, dict)):
        return text
    if get_origin(annotation) is tuple:
        return _items(text)
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _items(text: str) -> object:
    """A list in brackets as YAML has it, each item a text; else what the commas part: ``[::1]:1,[::1]:2`` are two."""
    if text.startswith("[") and text.endswith("]"):
        try:
            return yaml.load(text, yaml.BaseLoader)
        except yaml.YAMLError:
            text = text[1:-1]
    return [item.strip() for item in text.split(",") if item.strip()]


def apply_environment(source: Source, model: type[BaseModel], environ: Mapping[str, str]) -> None:
    """Takes each ``TRIPTYCH_SECTION__KEY``; one that names no setting is an error.

    A variable without the double underscore that names no top-level setting is somebody else's and is left alone.
    """
    known = {variable(key): (key, annotation) for key, annotation in keys(model)}
    for name, text in environ.items():
        if name in known:
            key, annotation = known[name]
            source.put(key, parse(text, annotation), name)
        elif name.startswith(PREFIX) and SEPARATOR in name:
            raise ConfigError(f"{name}: no setting has this name{suggest(name, list(known))}")


def apply_sets(source: Source, model: type[BaseModel], overrides: Sequence[str]) -> None:
    """Takes each ``a.b=c`` in order; the last one wins."""
    known = {".".join(key): (key, annotation) for key, annotation in keys(model)}
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals:
            raise ConfigError(f"--set {override}: write it as section.key=value")
        if name not in known:
            raise ConfigError(f"--set {override}: {name}: no such setting{suggest(name, list(known))}")
        key, annotation = known[name]
        source.put(key, parse(text, annotation), f"--set {override}")


def suggest(name: str, known: Sequence[str]) -> str:
    """`` (did you mean x?)`` when something similar exists, else nothing."""
    close = get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""
