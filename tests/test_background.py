"""Background work that fails is heard of; work that ends as it should is not."""

from __future__ import annotations

import ast
import asyncio
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from components import aio, background

ROOT = Path(__file__).parents[1]


@pytest.fixture
def heard() -> Iterator[list[str]]:
    reasons: list[str] = []
    with background.ends_process(reasons.append):
        yield reasons


async def test_a_task_that_raises_fails_what_waits_and_is_heard_of(
    heard: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    waiter = asyncio.get_running_loop().create_future()

    async def work() -> None:
        raise OverflowError("a number of 100 bits")

    background.task(work(), "heartbeat", failed=waiter.set_exception)
    with pytest.raises(OverflowError):
        await waiter
    assert heard == ["heartbeat ended unexpectedly"]
    (record,) = [record for record in caplog.records if record.levelno == logging.CRITICAL]
    assert "OverflowError: a number of 100 bits" in record.message
    assert record.exc_info is not None


async def test_a_task_that_its_owner_ends_is_not_a_failure(heard: list[str]) -> None:
    task = background.task(asyncio.sleep(3600), "keeper")
    await aio.end(task)
    assert task.cancelled()
    assert heard == []


def test_a_thread_that_raises_fails_what_waits_and_is_heard_of(heard: list[str]) -> None:
    told: list[BaseException] = []

    def work() -> None:
        raise MemoryError

    background.thread(work, "decode", failed=told.append).join()
    assert [type(error) for error in told] == [MemoryError]
    assert heard == ["decode ended unexpectedly"]


def test_a_thread_that_returns_is_not_a_failure(heard: list[str]) -> None:
    background.thread(lambda: None, "once").join()
    assert heard == []


def test_telling_those_who_wait_may_fail_and_the_process_still_hears(heard: list[str]) -> None:
    def broken(_: BaseException) -> None:
        raise ValueError

    background.fail("lease", RuntimeError("gone"), broken)
    assert heard == ["lease ended unexpectedly"]


ROLE = """
import asyncio, sys, time
from components import background
from components.cli import role

async def run(topology, instance):
    if "{kind}" == "task":
        async def work():
            raise RuntimeError("broken")
        background.task(work(), "heartbeat")
    else:
        def work():
            raise RuntimeError("broken")
        background.thread(work, "decode")
    if {hang}:
        time.sleep(3600)
    try:
        await asyncio.Event().wait()
    finally:
        print("left", flush=True)

role._LAST_SECONDS = 0.5
print("status", asyncio.run(role._until_stopped(run(None, None))), flush=True)
"""


@pytest.mark.parametrize("kind", ["task", "thread"])
def test_a_role_whose_background_work_fails_leaves_and_ends(kind: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", ROLE.format(kind=kind, hang=False)], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert ended.stdout.splitlines() == ["left", "status 70"], ended.stderr


def test_a_role_that_cannot_leave_ends_all_the_same() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", ROLE.format(kind="thread", hang=True)], cwd=ROOT, capture_output=True, timeout=60
    )
    assert ended.returncode == 70, ended.stderr


# One way to start tasks and threads. What may be started elsewhere, and why:
PERMITTED = {
    "components/aio.py": "the way to start a task that somebody awaits",
    "components/background.py": "the way to start work that nobody awaits",
    "components/nixl_connect": "imports nothing of the project; its one thread tells Connector.on_failure",
    "components/cli/role.py": "the timer that ends a process which has failed",
    "benchmarks": "scripts; their runs are read by a person",
    "deploy": "scripts; their runs are read by a person",
    "examples": "scripts; their runs are read by a person",
}
# A pool's threads outlive what runs on them, and hand each outcome to whoever awaits it; so does a task group.
STARTERS = {"create_task", "ensure_future", "Thread", "Timer", "run_coroutine_threadsafe"}


def _starts(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            receiver = getattr(getattr(node.func, "value", None), "id", "")
            if name in STARTERS and receiver != "group":
                yield f"{path.relative_to(ROOT)}:{node.lineno}: {name}"


def test_every_task_and_thread_is_started_in_one_of_two_ways() -> None:
    packages = ("components", "frontend", "processor", "workers")
    found = [
        start
        for package in packages
        for path in sorted((ROOT / package).rglob("*.py"))
        if not any(str(path.relative_to(ROOT)).startswith(place) for place in PERMITTED)
        for start in _starts(path)
    ]
    assert found == [], "use aio.child (somebody awaits it) or background.task and background.thread (nobody does)"
