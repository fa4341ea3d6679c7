"""Findings for people and for programs."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console
from rich.table import Table
from rich.text import Text

from components.doctor.finding import Finding

_MARKS = {"ok": ("ok", "green"), "warn": ("warn", "yellow"), "fail": ("FAIL", "bold red")}


def is_fit(findings: Sequence[Finding]) -> bool:
    return all(each.level != "fail" for each in findings)


def table(findings: Sequence[Finding]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column("check", no_wrap=True)
    table.add_column("level", no_wrap=True)
    table.add_column("says")
    for each in findings:
        mark, style = _MARKS[each.level]
        says = Text(each.says)
        if each.change:
            says.append(f"\n→ {each.change}", style="bold")
        table.add_row(each.check, Text(mark, style=style), says)
    return table


def show(findings: Sequence[Finding], console: Console) -> None:
    console.print(table(findings))
    bad, doubtful = (sum(each.level == level for each in findings) for level in ("fail", "warn"))
    verdict = "fit" if is_fit(findings) else "not fit"
    console.print(Text(f"{verdict}: {bad} failed, {doubtful} to look at, {len(findings)} checked"))


def as_json(findings: Sequence[Finding]) -> str:
    """One object: ``fit``, ``host``, ``time`` (unix seconds) and ``findings``."""
    content = {
        "fit": is_fit(findings),
        "host": socket.gethostname(),
        "time": time.time(),
        "findings": [asdict(each) for each in findings],
    }
    return json.dumps(content, indent=1)
