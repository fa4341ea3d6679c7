"""What the terminal shows while the stack runs: a table while it starts, one line for each event after that."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

_STYLES = {"starting": "yellow", "ready": "green", "restarting": "yellow", "failed": "red", "stopping": "dim"}


@dataclass
class _Row:
    state: str
    since: float = field(default_factory=time.monotonic)
    seconds: float | None = None


class Board:
    """Rows of ``name``, ``state``, ``seconds``. On a terminal a live table, elsewhere a line for each change."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._rows: dict[str, _Row] = {}
        self._live: Live | None = None

    def open(self) -> None:
        """Shows the live table, where the output is a terminal."""
        if self.console.is_terminal:
            self._live = Live(console=self.console, get_renderable=self._table, refresh_per_second=4)
            self._live.start()

    def close(self) -> None:
        """Leaves the table as it is; from now on each change is a line."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def set(self, name: str, state: str) -> None:
        """``starting`` starts a row's clock; any other state stops it."""
        row = self._rows.get(name)
        if row is None or state == "starting":
            self._rows[name] = _Row(state)
        else:
            row.state = state
            row.seconds = time.monotonic() - row.since
        row = self._rows[name]
        if self._live is None and state == "ready":
            self.say(f"{name}: ready after {row.seconds:.1f} s")

    def say(self, text: str, style: str = "") -> None:
        """One line, above the table while there is one."""
        self.console.print(Text(text, style=style), highlight=False, soft_wrap=True)

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False)
        table.add_column("process")
        table.add_column("state")
        table.add_column("seconds", justify="right")
        now = time.monotonic()
        for name, row in self._rows.items():
            seconds = row.seconds if row.seconds is not None else now - row.since
            table.add_row(name, Text(row.state, style=_STYLES.get(row.state, "")), f"{seconds:.1f}")
        return table
