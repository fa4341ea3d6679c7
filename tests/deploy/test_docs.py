"""What these pages tell people to type exists, and so do the pages and files that they lead to."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.main import get_command

from components.cli.main import app
from tests.servers import ROOT

PAGES = ("deploy.md", "deploy-cluster.md", "troubleshooting.md", "ports.md", "http.md")


@pytest.mark.parametrize("name", PAGES)
def test_links_and_commands(name: str) -> None:
    page = ROOT / "docs" / name
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (page.parent / target).exists(), target
    commands = get_command(app).commands  # type: ignore[attr-defined]
    for command in re.findall(r"(?:^\$ |^|`)triptych ([a-z]+)", text, re.MULTILINE):
        assert command in commands, command
    for path in re.findall(r"\b((?:deploy|configs|container)/[\w./-]*\w)", text):
        assert Path(ROOT, path).exists(), path


def test_options_of_the_benchmark() -> None:
    script = (ROOT / "deploy" / "bench" / "bench.py").read_text()
    for name in PAGES:
        for line in re.findall(r"deploy/bench/bench\.py[^`\n]*", (ROOT / "docs" / name).read_text()):
            for option in re.findall(r"--[a-z-]+", line):
                assert f'"{option}"' in script, line
