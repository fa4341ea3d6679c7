"""The tables in docs/configuration.md are those of the settings as they are."""

from __future__ import annotations

from components.config.reference import PAGE, page
from components.config.source import keys
from components.config.topology import Topology


def test_the_page_is_current() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert page(text) == text, "run: python -m components.config.reference"


def test_the_page_names_every_setting() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert [key for key, _ in keys(Topology) if f"| `{'.'.join(key)}` |" not in text] == []
