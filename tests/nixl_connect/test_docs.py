"""docs/nixl_connect cannot lag: every block runs over real NIXL, every public name is on its page with all its members,
and the picture has exactly the states and moves that the code has."""

from __future__ import annotations

import ast
import inspect
import itertools
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from components import nixl_connect as nc
from components.nixl_connect import cuda, lease
from components.nixl_connect.counters import Tally
from components.nixl_connect.lease import Exposure, Front, Leases
from components.nixl_connect.owner import Timer
from components.nixl_connect.peers import Peer
from components.nixl_connect.record import RdmaMetadata, parse_record
from components.nixl_connect.states import MOVES, OperationKind, OperationStatus
from components.nixl_connect.wire import Kind, Message, Reason
from tests.servers import ROOT

FOLDER = ROOT / "docs" / "nixl_connect"
PAGES = sorted(path.name for path in FOLDER.glob("*.md"))
BLOCK = re.compile(r"^```python( cuda)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
WITHOUT_EXAMPLE = {"why.md"}
"""A table whose rows are tests of their own."""


# examples


def blocks(page: str, *, on_gpu: bool) -> list[str]:
    return [code for mark, code in BLOCK.findall((FOLDER / page).read_text()) if bool(mark) is on_gpu]


def with_blocks(*, on_gpu: bool) -> list[str]:
    return [page for page in PAGES if blocks(page, on_gpu=on_gpu)]


def run(page: str, *, on_gpu: bool) -> None:
    """Each block as a program of its own, as somebody would paste it."""
    for code in blocks(page, on_gpu=on_gpu):
        exec(compile(code, page, "exec"), {"__name__": "__main__"})


def test_every_page_has_an_example_and_every_example_asserts() -> None:
    assert set(PAGES) - set(with_blocks(on_gpu=False)) == WITHOUT_EXAMPLE
    for page in PAGES:
        for code in blocks(page, on_gpu=False) + blocks(page, on_gpu=True):
            nodes = list(ast.walk(ast.parse(code)))
            assert any(isinstance(node, ast.Assert) for node in nodes), page
            for node in nodes:
                if isinstance(node, ast.ImportFrom) and node.module == "components.nixl_connect":
                    assert {name.name for name in node.names} <= set(nc.__all__), page


@pytest.mark.parametrize("page", with_blocks(on_gpu=False))
def test_examples(page: str) -> None:
    run(page, on_gpu=False)


@pytest.mark.skipif(cuda.driver() is None, reason="no GPU here; run on a machine with one")
@pytest.mark.parametrize("page", with_blocks(on_gpu=True))
def test_examples_on_a_gpu(page: str) -> None:
    run(page, on_gpu=True)


def test_hello() -> None:
    """Two processes and a pipe, as its README says; about ten lines each."""
    folder = ROOT / "examples" / "hello_nixl"
    (command,) = re.findall(r"^python .*\|.*$", (folder / "README.md").read_text(), re.MULTILINE)
    exposer, reader = [ROOT / part.split()[1] for part in command.split("|")]
    for script in (exposer, reader):
        body = ast.parse(script.read_text()).body[1:]
        assert sum(1 for line in ast.unparse(ast.Module(body, [])).splitlines() if line) <= 12
    first = subprocess.Popen([sys.executable, exposer], stdout=subprocess.PIPE, cwd=ROOT)
    assert first.stdout is not None
    try:
        second = subprocess.run([sys.executable, reader], stdin=first.stdout, capture_output=True, cwd=ROOT, timeout=60)
        assert second.stdout.decode() == "hello over NIXL\n", second.stderr
        assert first.wait(timeout=60) == 0 and second.returncode == 0
    finally:
        first.kill()
        first.wait()
        first.stdout.close()


# links and names


@pytest.mark.parametrize("page", [*PAGES, "../../examples/hello_nixl/README.md"])
def test_links(page: str) -> None:
    path = FOLDER / page
    text = path.read_text()
    for target in re.findall(r"\]\(([^)]+)\)", text):
        file, _, anchor = target.partition("#")
        if file.startswith("http"):
            continue
        found = path if not file else path.parent / file
        assert found.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", found.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
    for name in re.findall(r"`tests/nixl_connect/(\w+\.py)`", text):
        assert (ROOT / "tests" / "nixl_connect" / name).exists(), name
    for name in re.findall(r"`(\w+\.py)`", text):
        assert (ROOT / "components" / "nixl_connect" / name).exists(), name


def index() -> dict[str, str]:
    """Public name → its page, from the table of README.md."""
    rows = re.findall(r"^\| (`[^|]*) \| \[[\w.]+\]\(([\w.]+)\) \|", (FOLDER / "README.md").read_text(), re.MULTILINE)
    return {name: page for names, page in rows for name in re.findall(r"`(\w+)`", names)}


def test_every_public_name_is_in_the_index_and_every_page_is_reached() -> None:
    assert set(index()) == set(nc.__all__)
    readme = (FOLDER / "README.md").read_text()
    assert all(f"]({page})" in readme for page in PAGES if page != "README.md")


def members(name: str) -> set[str]:
    """What a public name offers: attributes, methods, properties and fields of this package's own."""
    thing = getattr(nc, name)
    if not inspect.isclass(thing):
        return set()
    for_the_owner_thread = {key for key in vars(Front) if not key.startswith("_")} | {"expose_as", "metadata_bytes"}
    found = set(getattr(thing, "model_fields", ())) | set(getattr(thing, "__dataclass_fields__", ()))
    for base in thing.__mro__:
        if base.__module__.startswith(nc.__name__):
            found |= {key for key in vars(base) if key not in ("model_config",)}
    return {key for key in found if not key.startswith("_")} - for_the_owner_thread


@pytest.mark.parametrize("name", nc.__all__)
def test_the_page_of_a_name_has_its_members(name: str) -> None:
    page = FOLDER / index()[name]
    # The code spans of the prose: an example that happens to use a word does not explain it.
    spans = " ".join(re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)))
    words = set(re.findall(r"\w+", spans))
    assert name in words | set(re.findall(r"\w+", page.read_text().splitlines()[0]))
    assert not members(name) - words, f"{page.name} does not mention {members(name) - words}"


@pytest.mark.parametrize("verb", ["__init__", "create_readable", "create_writable", "begin_read", "begin_write"])
def test_the_arguments_of_the_verbs(verb: str) -> None:
    text = (FOLDER / "connector.md").read_text()
    start = "Connector" if verb == "__init__" else verb
    (written,) = re.findall(rf"`{start}\(([^`]*)\)`", text)[:1]
    documented = {part.split("=")[0].strip() for part in re.sub(r"\([^)]*\)", "", written).split(",")} - {"*"}
    assert documented == set(inspect.signature(getattr(nc.Connector, verb)).parameters) - {"self"}


def test_the_table_of_errors() -> None:
    text = (FOLDER / "errors.md").read_text()
    rows = {
        name: (code, retryable == "yes")
        for name, code, retryable in re.findall(r"^\| `(\w+)` \| `(\w+)` \| (yes|no) \|", text, re.MULTILINE)
    }
    errors = [thing for thing in vars(nc).values() if inspect.isclass(thing) and issubclass(thing, nc.TransferError)]
    assert rows == {error.__name__: (error.code, error.retryable) for error in errors}


def test_the_table_of_messages() -> None:
    written = re.findall(r"^\| `([A-Z]+)` \| (?:active|passive|either)", (FOLDER / "lifetimes.md").read_text(), re.M)
    assert written == [kind.name for kind in Kind]


def test_every_weakness_has_its_test() -> None:
    listed = re.findall(r"^\| W(\d+) \|", (FOLDER / "why.md").read_text(), re.MULTILINE)
    tests = (ROOT / "tests" / "nixl_connect" / "test_weaknesses.py").read_text()
    assert listed == [str(number) for number in range(1, 22)]
    assert all(f"async def test_w{number}_" in tests for number in listed)


# the picture

SVG = "{http://www.w3.org/2000/svg}"
Moves = set[tuple[str, str]]


def drawn(kind: str, arrow: str) -> tuple[dict[str, bool], Moves]:
    """State → has it the thick border of a final one; and the arrows. Each arrow must begin and end at its boxes."""
    root = ElementTree.parse(FOLDER / "states.svg").getroot()
    boxes: dict[str, tuple[float, float, float, float]] = {}
    final: dict[str, bool] = {}
    for group in root.iter(f"{SVG}g"):
        if group.get("class") == kind:
            name, box, label = group.attrib["id"], group.find(f"{SVG}rect"), group.find(f"{SVG}text")
            assert box is not None and label is not None and label.text == name
            x, y, width, height = (float(box.attrib[key]) for key in ("x", "y", "width", "height"))
            boxes[name], final[name] = (x, y, x + width, y + height), box.get("class") in ("final", "free")
    moves: Moves = set()
    for path in root.iter(f"{SVG}path"):
        if path.get("class") == arrow:
            numbers = [float(number) for number in re.findall(r"-?[\d.]+", path.attrib["d"])]
            ends = {path.attrib["data-from"]: numbers[:2], path.attrib["data-to"]: numbers[-2:]}
            for name, (x, y) in ends.items():
                left, top, right, bottom = boxes[name]
                assert left - 3 <= x <= right + 3 and top - 3 <= y <= bottom + 3, (name, x, y)
                assert not (left + 3 < x < right - 3 and top + 3 < y < bottom - 3), "an end inside its box"
            moves.add((path.attrib["data-from"], path.attrib["data-to"]))
    return final, moves


def test_the_picture_has_the_states_of_an_operation() -> None:
    final, moves = drawn("status", "move")
    assert final == {status.name: status.is_terminal for status in OperationStatus}
    assert moves == {(before.name, after.name) for before in MOVES for after in MOVES[before]}


class Clock:
    """Time that a test moves, with the timers of an owner thread."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[tuple[float, Timer]] = []

    def monotonic(self) -> float:
        return self.now

    def at(self, when: float, action: Callable[[], None]) -> Timer:
        timer = Timer(action, [0])
        self.timers.append((when, timer))
        return timer

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while due := [entry for entry in self.timers if entry[1].action is not None and entry[0] <= end]:
            when, timer = min(due, key=lambda entry: entry[0])
            self.now = max(self.now, when)
            action, timer.action = timer.action, None
            assert action is not None
            action()
        self.now = end


@dataclass
class Seen:
    """What the lease machine told the operation in front of it."""

    statuses: list[OperationStatus]
    is_released: bool = False

    def moved(self, status: OperationStatus) -> None:
        self.statuses.append(status)

    def ended(self, status: OperationStatus, error: nc.TransferError | None, *, released: bool) -> None:
        self.statuses.append(status)

    def released(self) -> None:
        self.is_released = True


class Machine:
    """One exposure and two peers, without NIXL: what a peer or the application does is an event."""

    def __init__(self, record: RdmaMetadata, readers: int | None, clock: Clock) -> None:
        clock.timers.clear()
        self.clock, self.record = clock, record
        self.leases = Leases(Tally(), clock.at, lambda _who, _message: True)
        self.seen = Seen([OperationStatus.UNINITIALIZED])
        hold: Any = SimpleNamespace(release=lambda: None)
        self.exposure = Exposure(record, hold, clock.now + 10.0, readers, self.seen)
        self.leases.expose(self.exposure)
        self.peers = [Peer("a@0"), Peer("b@0")]

    def memory(self) -> str:
        if self.exposure.key not in self.leases._exposures:
            return "RELEASED"
        if self.exposure.over:
            return "QUARANTINE"
        return "CLAIMED" if self.exposure.claims else "LEASED"

    def message(self, kind: Kind, reason: Reason | None = None, seconds: float = 0.0) -> Message:
        return Message(kind, self.exposure.key, 1, reason, bytes.fromhex(self.record.seal), seconds)

    def events(self) -> list[Callable[[], object]]:
        a, b = self.peers
        leases, key = self.leases, self.exposure.key
        return [
            lambda: leases.claim(self.message(Kind.CLAIM, seconds=3.0), a),
            lambda: leases.claim(self.message(Kind.CLAIM, seconds=30.0), b),
            lambda: leases.done(self.message(Kind.DONE), a),
            lambda: leases.done(self.message(Kind.DONE), b),
            lambda: leases.ended(self.message(Kind.END, Reason.CANCELLED), a),
            lambda: leases.ended(self.message(Kind.END, Reason.FAILED), b),
            lambda: leases.peer_lost(a, "killed"),
            lambda: leases.cancel(key),
            lambda: leases.renew(key, 20.0),
            lambda: leases.close(),
            lambda: leases.abandon("the end"),
            lambda: self.clock.advance(5.0),
            lambda: self.clock.advance(12.0),
        ]


def record_of(kind: OperationKind) -> RdmaMetadata:
    memory = {"device": "cpu", "ptr": 4096, "size": 64}
    return parse_record(
        {
            "operation_kind": int(kind),
            "peer": "here",
            "host": "0" * 16,
            "generation": "0" * 16,
            "notification_key": "1" * 32,
            "descriptors": [memory | {"region": 0}],
            "regions": [memory | {"id": 0}],
            "lease_until": 0.0,
        }
    ).sealed()


def test_the_picture_has_what_can_happen_to_exposed_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every sequence of three events, for each kind of exposure: the moves that occur are the moves that are drawn."""
    final, moves = drawn("hold", "memory")
    clock = Clock()
    monkeypatch.setattr(lease, "time", clock)
    occurred: Moves = set()
    statuses: Moves = set()
    for kind, readers in (
        (OperationKind.READ, 1),
        (OperationKind.READ, 2),
        (OperationKind.READ, None),
        (OperationKind.WRITE, 1),
    ):
        record = record_of(kind)
        for sequence in itertools.product(range(13), repeat=3):
            machine = Machine(record, readers, clock)
            for number in sequence:
                before = machine.memory()
                machine.events()[number]()
                after = machine.memory()
                if before != after:
                    occurred.add((before, after))
                assert machine.seen.is_released is (after == "RELEASED")
                if after == "RELEASED":
                    break
            told = machine.seen.statuses
            statuses |= {(x.name, y.name) for x, y in itertools.pairwise(told) if x is not y}
    assert occurred == moves
    assert set(final) == {state for move in occurred for state in move}
    assert [state for state, is_final in final.items() if is_final] == ["RELEASED"]
    assert statuses <= drawn("status", "move")[1]


def test_the_text_walks_through_the_picture() -> None:
    text = (FOLDER / "lifetimes.md").read_text()
    assert "](states.svg)" in text
    for name in drawn("hold", "memory")[0]:
        assert re.search(rf"\b{name}\b", text, re.IGNORECASE), name
