"""A result of the serving benchmark can be printed, written into its page and drawn."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from benchmarks import plot_serve, serve, serve_page

HOPS = [
    {"stage": "frontend", "name": "total", "start": 1.0, "milliseconds": 100.0, "bytes": 0, "lane": ""},
    {"stage": "prefill", "name": "write KV", "start": 1.05, "milliseconds": 25.0, "bytes": 2048, "lane": "cpu-cpu"},
]


@pytest.fixture
def result() -> dict[str, Any]:
    alone = [serve.Timing(0.05, 0.2, 20, HOPS)]
    found = serve.summary(alone, [serve.Timing(0.04, 0.1, 20)], [(0.4, alone * 8)], 8)
    settings = {"rounds": 1, "tokens": 20, "at_once": 8, "threads": 1, "machine": "any", "cpus": 2}
    return {**found, "settings": {**settings, "load_before": "0"}}


def test_it_is_printed(result: dict[str, Any]) -> None:
    lines = serve.report(result).splitlines()
    assert any(line.split()[-1] == "400" for line in lines if line.startswith("three panels, 8 at once"))


def test_it_is_written_between_the_marks(result: dict[str, Any], tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    mark = "<!-- measured: serve -->"
    page.write_text(f"before\n{mark}\nold\n{mark}\nafter\n")
    serve_page.write(page, result)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "| three panels, 8 at once, in all | 50.0 ms | 400 | 2.00 |" in text
    assert "| prefill | write KV | 25.00 | 25.0% | 2,048 | cpu-cpu |" in text
    page.write_text("no place")
    with pytest.raises(SystemExit, match="needs two lines"):
        serve_page.write(page, result)


def test_it_is_drawn_where_it_lies_in_time(result: dict[str, Any]) -> None:
    names = [text.text for text in ET.fromstring(plot_serve.draw(result)).iter("{http://www.w3.org/2000/svg}text")]
    assert names.index("total") < names.index("write KV")
    assert "25.0 ms, 2,048 B" in names
