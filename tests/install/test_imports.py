"""Every module and every command's ``--help``, where only what ``make install`` installs can be imported.

``make test-install`` makes that environment with pip, and runs every command once.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.config.topology import REPOSITORY
from tests.install import environment
from tests.install.commands import paths

APART = {"dynamo", "sglang", "tensorrt_llm", "zmq"}
"""Of engines in environments of their own (docs/engines.md), and of what a benchmark compares with."""


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return environment.make(tmp_path_factory.mktemp("installed"))


def run(python: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, *arguments],
        cwd=python.parent,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_what_only_tests_need_is_not_there(python: Path) -> None:
    for module in ("httpx", "openai", "pytest"):
        assert f"No module named '{module}'" in run(python, "-c", f"import {module}").stderr


def _modules() -> Iterator[str]:
    for package in ("benchmarks", "components", "frontend", "processor", "workers"):
        for path in sorted((REPOSITORY / package).rglob("*.py")):
            name = ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")
            if not name.endswith("__main__"):
                yield name


IMPORT = """
import importlib

for name in {names!r}:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] not in {apart!r}:
            print(name, error, sep=": ")
"""


def test_every_module_can_be_imported(python: Path) -> None:
    done = run(python, "-c", IMPORT.format(names=list(_modules()), apart=APART))
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


@pytest.mark.parametrize("path", paths(), ids=lambda path: " ".join(path) or "triptych")
def test_every_command_has_help(python: Path, path: tuple[str, ...]) -> None:
    done = run(python, "-m", "components.cli", *path, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage:" in done.stdout.lower()
