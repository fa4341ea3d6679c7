"""Results in a page of the documentation: each between two lines that say what was measured."""

from __future__ import annotations

from pathlib import Path


def filled(text: str, page: Path, what: str, result: str) -> str:
    """``text``, that of ``page``, with ``result`` between its two lines ``<!-- measured: WHAT -->``.

    Raises ``SystemExit`` if there is no such place."""
    mark = f"<!-- measured: {what} -->"
    if text.count(mark) != 2:
        raise SystemExit(f"{page} needs two lines {mark}")
    before, _, after = text.split(mark)
    return f"{before}{mark}\n\n{result}\n\n{mark}{after}"
