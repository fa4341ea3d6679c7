"""Writes the tables of ``docs/configuration.md`` from the settings: ``python -m components.config.reference``."""

from __future__ import annotations

import json
import typing
from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from components.config.source import variable
from components.config.topology import REPOSITORY, Topology

PAGE = REPOSITORY / "docs" / "configuration.md"
BEGIN = "<!-- made by python -m components.config.reference -->\n"
END = "<!-- end -->\n"


def tables(model: type[BaseModel] = Topology, prefix: tuple[str, ...] = (), title: str = "Top level") -> str:
    """A heading and a table for each section, outermost first."""
    rows = []
    inner = []
    for name, info in model.model_fields.items():
        key = (*prefix, name)
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            inner.append(tables(info.annotation, key, f"`{'.'.join(key)}`: {info.description}"))
        else:
            rows.append(f"| `{'.'.join(key)}` | {_default(info)} | {info.description} | `{variable(key)}` |\n")
    head = f"## {title}\n\n| key | default | what it does | variable |\n| --- | --- | --- | --- |\n"
    return "\n".join([head + "".join(rows), *inner])


def _default(info: FieldInfo) -> str:
    if info.default is PydanticUndefined or info.default is None:
        return ""  # the description says what happens when it is left out
    value = list(info.default) if isinstance(info.default, tuple) else info.default
    size = 2**20
    if typing.get_origin(info.annotation) is None and isinstance(value, int) and value >= size and value % size == 0:
        return f"`{value // size}MiB`"
    return f"`{value}`" if isinstance(value, str) else f"`{json.dumps(value)}`"


def page(text: str) -> str:
    """``text`` with the tables between its two markers made anew."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{tables()}\n{END}{after}"


def main(path: Path = PAGE) -> None:
    path.write_text(page(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
