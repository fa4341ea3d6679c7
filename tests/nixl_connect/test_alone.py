"""The data plane can be lifted out: a copy of its folder, under another name, without anything else of this project."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.servers import ROOT

PACKAGE = ROOT / "components" / "nixl_connect"
NAME = "lifted_out"
FOREIGN = ("components", "torch", "cupy")

EXPOSER = """
async def main():
    async with nixl.Connector() as connector:
        pool = await connector.create_pool(1 << 20)
        slot = pool.allocate(len(SENT))
        slot.numpy()[:] = numpy.frombuffer(SENT, numpy.uint8)
        readable = await connector.create_readable(slot.descriptor)
        back = bytearray(len(SENT))
        writable = await connector.create_writable(nixl.Descriptor(back))
        say(readable.metadata().model_dump_json())
        say(writable.metadata().model_dump_json())
        await readable.wait_for_completion()
        await writable.wait_for_completion()
        say(json.dumps({"good": bytes(back) == SENT[::-1], "foreign": foreign()}))
"""
READER = """
async def main():
    async with nixl.Connector() as connector:
        record, place = [nixl.parse_record(sys.stdin.readline()) for _ in range(2)]
        received = bytearray(record.size)
        read = await connector.begin_read(record, nixl.Descriptor(received))
        await read.wait_for_completion()
        write = await connector.begin_write(nixl.Descriptor(bytes(received[::-1])), place)
        await write.wait_for_completion()
        say(json.dumps({"good": bytes(received) == SENT, "foreign": foreign()}))
"""
AROUND = f"""
import asyncio, importlib, json, pkgutil, sys
sys.path += sys.argv[1:]
assert importlib.util.find_spec("components") is None, "the project itself is within reach"
import {NAME} as nixl
import numpy
for module in pkgutil.iter_modules(nixl.__path__):
    importlib.import_module(nixl.__name__ + "." + module.name)
SENT = bytes(range(256)) * 1000

def say(line):
    print(line, flush=True)

def foreign():
    return sorted(name for name in sys.modules if name.split(".")[0] in {FOREIGN!r})
{{main}}
asyncio.run(main())
"""


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    """All that the copy may import from, beside Python's own library: itself, and what is installed."""
    shutil.copytree(PACKAGE, tmp_path / NAME, ignore=shutil.ignore_patterns("__pycache__"))
    return [str(tmp_path), sysconfig.get_path("purelib")]


def start(main: str, paths: list[str]) -> subprocess.Popen[str]:
    # -I: no environment, no current folder. -S: no .pth file, and so no editable install of the project.
    program = [sys.executable, "-I", "-S", "-c", AROUND.replace("{main}", main), *paths]
    return subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_copy_under_another_name_moves_bytes_between_two_processes(paths: list[str]) -> None:
    exposer, reader = start(EXPOSER, paths), start(READER, paths)
    try:
        assert exposer.stdout is not None and exposer.stdin is not None
        records = exposer.stdout.readline() + exposer.stdout.readline()
        said, complaints = reader.communicate(records, timeout=60)
        assert said, complaints
        assert json.loads(said) == {"good": True, "foreign": []}
        said, complaints = exposer.communicate(timeout=60)
        assert said, complaints
        assert json.loads(said) == {"good": True, "foreign": []}
        assert exposer.returncode == reader.returncode == 0
    finally:
        for process in (exposer, reader):
            process.kill()
            process.communicate()


def test_the_self_test_of_a_copy_starts_the_copy(paths: list[str]) -> None:
    """It starts a process of its own, by the package's name: the name must not be written anywhere."""
    main = """
async def main():
    async with nixl.Connector() as connector:
        lanes = await connector.self_test(["cpu"])
        say(json.dumps({"good": [lane.name for lane in lanes] == ["cpu-cpu"] * 2, "foreign": foreign()}))
"""
    process = start(main, paths)
    said, complaints = process.communicate(timeout=120)
    assert said, complaints
    assert json.loads(said) == {"good": True, "foreign": []}


def test_no_file_of_it_names_the_project() -> None:
    """Imports inside functions, too, which the other tests may not reach."""
    known = set(sys.stdlib_module_names) | {"numpy", "pydantic", "torch"}
    for path in PACKAGE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            else:
                assert not isinstance(node, ast.ImportFrom) or node.level == 1, f"{path.name} imports from above itself"
                continue
            assert {name.split(".")[0] for name in names} <= known, f"{path.name}: {names}"
