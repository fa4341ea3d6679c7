"""What a check found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """``says`` is what is so; ``change`` is what to do about it, empty when nothing is to be done.

    ``fail``: requests would fail or be slow by a factor. ``warn``: it depends on what this node is for.
    """

    check: str
    level: Level
    says: str
    change: str = ""
    numbers: dict[str, float | str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.level != "ok" and not self.change:
            raise ValueError(f"{self.check}: a finding that is not ok says what to change")
