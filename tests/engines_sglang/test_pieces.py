"""What stands around SGLang, without it: what is refused before the engine sees it, who waits, who is aborted."""

from __future__ import annotations

import asyncio
import inspect
import os
import re
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, cast

import msgspec
import pytest
import torch

from components import background
from components.config import ConfigError, load
from components.config.topology import REPOSITORY
from components.engines.base import EngineError, Grid, ImageInfo, ImageRows, Prompt
from components.engines.sglang.arguments import Arguments
from components.engines.sglang.budget import Budget
from components.engines.sglang.decode import RoomReservation, SGLangDecodeEngine
from components.engines.sglang.encode import encoder_module
from components.engines.sglang.host import EngineHost
from components.engines.sglang.prefill import SGLangPrefillEngine
from components.engines.sglang.request import (
    Source,
    content,
    image_data,
    new_room,
    read_room,
    read_source,
    rows,
    stub,
    write_room,
)
from components.engines.sglang.scheduler import _hub_name
from components.engines.sglang.stream import Output, Stream
from components.engines.transformers.checkpoint import Checkpoint
from components.nixl_connect import InvalidBuffer, Slot
from components.protocol import Embedding, Sampling
from tests.engines_sglang.releases import names
from tests.model import MODEL
from tests.waiting import until
from workers.prefill.images import ImageReader


def test_the_content_number_tells_pictures_orders_and_models_apart() -> None:
    a, b = ImageInfo((1, 4, 4), 4, "a" * 64), ImageInfo((1, 4, 4), 4, "b" * 64)
    numbers = [content("r", [a]), content("r", [b]), content("r", [a, b]), content("r", [b, a]), content("s", [a])]
    assert len(set(numbers)) == len(numbers)
    assert content("r", [a, b]) == content("r", [a, b])
    assert all(0 <= number < 2**64 for number in numbers)


class Host:
    """Keeps what an engine would have been asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    @asynccontextmanager
    async def open(self, request: dict[str, Any]) -> AsyncIterator[Host]:
        self.asked.append(request)
        yield self

    async def outputs(self) -> AsyncIterator[Output]:
        yield Output([1], None)


async def test_a_salt_parts_the_prefix_caches_of_both_halves() -> None:
    """With pictures or without; what prefill is asked and what decode is asked agree."""
    checkpoint = Checkpoint.open(str(MODEL), device="cpu")
    topology = load(None, ["engine=sglang"])
    prefill = SGLangPrefillEngine(checkpoint, Arguments.for_prefill(checkpoint, topology), kv_tokens=1024)
    decode = SGLangDecodeEngine(checkpoint, Arguments.for_decode(checkpoint, topology), kv_tokens=1024, max_batch=6)
    host = cast(Any, prefill)._host = cast(Any, decode)._host = Host()
    target: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    target.set_result(write_room(7))
    sampling = Sampling(max_tokens=4)
    picture = image(Rows(4, prefill.format.width))
    for images, ids in (((), (1, 2)), ((picture,), (1, prefill.image_token_id, 2))):
        for salt in ("", "ann", "bob"):
            host.asked.clear()
            expanded = prefill.expand(ids, [each.tokens for each in images])
            await prefill.prefill(Prompt(expanded, images, sampling, salt), target, 60)
            await decode.reserve(len(expanded), sampling, prefill.source(ids, images, salt), 60)
            assert [asked["extra_key"] for asked in host.asked] == [salt or None] * 2
            assert host.asked[0]["input_ids"] == host.asked[1]["input_ids"]
            hashes = [[item["hash"] for item in asked["image_data"] or []] for asked in host.asked]
            assert hashes[0] == hashes[1]


def test_rooms_are_never_zero_and_travel_as_eight_bytes() -> None:
    room = new_room()
    assert read_room(write_room(room)) == room >= 1
    for target in (b"", b"\0" * 8, b"\1" * 9, b"{}"):
        with pytest.raises(EngineError) as refused:
            read_room(target)
        assert refused.value.code == "transfer_failed"


def test_a_source_that_is_none_is_refused() -> None:
    source = Source("127.0.0.1", 8998, [1, 2], [(1, 4, 4)], 7, "salt")
    assert read_source(msgspec.msgpack.encode(source)) == source
    for data in (b"", b"\xc1", b"{}", msgspec.msgpack.encode({"host": "x", "port": 0})):
        with pytest.raises(EngineError) as refused:
            read_source(data)
        assert refused.value.code == "transfer_failed"


def test_decode_gets_the_grids_and_no_rows() -> None:
    grids = [(1, 4, 4), (1, 8, 4)]
    (item,) = stub(grids, 5)
    assert item["image_grid_thw"].tolist() == [list(grid) for grid in grids]
    assert item["precomputed_embeddings"].numel() == 1
    (whole,) = image_data(torch.zeros(12, 3), grids, 5)
    assert whole["hash"] == item["hash"] and whole["format"] == item["format"] == "processor_output"
    assert sum(rows(grid, 2) for grid in grids) == 12


def test_weights_are_found_under_either_name() -> None:
    assert _hub_name("model.language_model.layers.0.mlp.up_proj.weight") == "model.layers.0.mlp.up_proj.weight"
    assert _hub_name("model.visual.blocks.0.norm1.weight") == "visual.blocks.0.norm1.weight"
    assert _hub_name("model.layers.0.mlp.up_proj.weight") == "model.layers.0.mlp.up_proj.weight"
    assert _hub_name("lm_head.weight") == "lm_head.weight"


def test_arguments_that_a_release_does_not_have_are_left_out() -> None:
    class ServerArgs:
        def __init__(self, model_path: str, port: int = 1) -> None: ...

    arguments = Arguments(
        {"model_path": "m", "port": 2, "image_processor_backend": "pil"}, {"port": 3, "nonsense": 1}, {}
    )
    # What the topology says is passed on, right or wrong: the engine knows.
    assert arguments.known(ServerArgs) == {"model_path": "m", "port": 3, "nonsense": 1}


def every_argument(device: str) -> list[Arguments]:
    topology = load(None, ["engine=sglang", f"model.path={MODEL}", "model.dtype=float16"])
    checkpoint = replace(Checkpoint.open(str(MODEL), device="cpu"), device=torch.device(device))
    roles = (Arguments.for_encode, Arguments.for_prefill, Arguments.for_decode)
    return [arguments(checkpoint, topology) for arguments in roles]


@pytest.mark.parametrize(
    ("release", "device", "lacking"),
    [
        ("0.5.17", "cpu", {"image_processor_backend", "disaggregation_decode_retraction_backup"}),
        ("0.5.17", "cuda:1", set()),
        ("0.5.23", "cpu", set()),
        ("0.5.23", "cuda:1", set()),
    ],
)
def test_each_release_is_given_what_it_knows_and_nothing_else(release: str, device: str, lacking: set[str]) -> None:
    """By the names of the arguments of each; test_arguments.py holds them against the release that is installed."""

    class ServerArgs:
        __signature__ = inspect.Signature(
            [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in names(release)]
        )

    every = every_argument(device)
    known = [arguments.known(ServerArgs) for arguments in every]
    assert all(set(each) <= names(release) for each in known)
    left_out = [set(arguments.engine) - set(each) for arguments, each in zip(every, known, strict=True)]
    assert set().union(*left_out) == lacking


@pytest.mark.parametrize(
    ("release", "place"),
    [
        ("0.5.17", "sglang.srt.disaggregation.encode_server"),
        ("0.5.23", "sglang.srt.disaggregation.encoder.server"),
        ("one without an encoder", None),
        ("none at all", None),
    ],
)
def test_the_encoder_is_found_where_the_release_has_it(release: str, place: str | None) -> None:
    there = {"sglang", "sglang.srt", "sglang.srt.disaggregation", place, place and place.rpartition(".")[0]}
    assert encoder_module(lambda name: (name in there and release != "none at all") or None) == place


def test_the_bootstrap_port_of_the_topology_is_the_one_that_decode_is_told() -> None:
    name = "disaggregation_bootstrap_port"
    checkpoint = Checkpoint.open(str(MODEL), device="cpu")
    topology = load(None, ["engine=sglang", f'prefill.engine_arguments={{"{name}": 9123}}'])
    arguments = Arguments.for_prefill(checkpoint, topology)
    assert arguments.bootstrap is not None and arguments.bootstrap[1] == 9123 == arguments.engine[name]
    with pytest.raises(ValueError, match="is no port"):
        Arguments.for_prefill(checkpoint, load(None, ["engine=sglang", f'prefill.engine_arguments={{"{name}": "x"}}']))


def test_time_outs_cover_what_they_name_and_a_crash_is_not_waited_for() -> None:
    topology = load(None, ["engine=sglang", "transfer.lease_seconds=20", "frontend.request_timeout_seconds=90"])
    environment = Arguments.for_decode(Checkpoint.open(str(MODEL), device="cpu"), topology).environment
    assert environment["SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT"] == "20"
    assert environment["SGLANG_DISAGGREGATION_WAITING_TIMEOUT"] == "90"
    assert environment["SGLANG_CUDA_COREDUMP_BEFORE_CRASH"] == environment["SGLANG_PYSPY_DUMP_BEFORE_CRASH"] == "0"


def image(slot: Rows, grid: Grid = (1, 4, 4), tokens: int = 4) -> ImageRows:
    return ImageRows(grid, tokens, "a" * 64, cast(Slot, slot))


@dataclass
class Rows:
    """As far as a prefill engine knows a slot: memory for so many rows of the model's width."""

    rows: int
    width: int

    def tensor(self, dtype: torch.dtype, shape: tuple[int, int]) -> torch.Tensor:
        if shape[0] * shape[1] > self.rows * self.width:
            raise InvalidBuffer(f"a view of {shape} in {self.rows} rows of {self.width}")
        return torch.ones(shape, dtype=dtype)


@pytest.mark.parametrize(
    ("placeholders", "grid", "tokens", "code"),
    [
        (5, (1, 4, 4), 4, "internal"),  # fewer rows than placeholders end SGLang's scheduler
        (3, (1, 4, 4), 4, "internal"),  # more are not noticed
        (4, (1, 4, 8), 4, "transfer_failed"),  # a grid of other rows turns the positions
        (4, (0, 4, 4), 0, "transfer_failed"),
        (4, (1, -4, -4), 4, "transfer_failed"),
    ],
)
async def test_rows_that_do_not_fit_the_prompt_never_reach_the_engine(
    placeholders: int, grid: Grid, tokens: int, code: str
) -> None:
    checkpoint = Checkpoint.open(str(MODEL), device="cpu")
    topology = load(None, ["engine=sglang"])
    engine = SGLangPrefillEngine(checkpoint, Arguments.for_prefill(checkpoint, topology), kv_tokens=1024)
    rows = image(Rows(4, engine.format.width), grid, tokens)
    prompt = Prompt((1, *[engine.image_token_id] * placeholders, 2), (rows,), Sampling(max_tokens=4))
    target: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    target.set_result(write_room(7))
    with pytest.raises(EngineError) as refused:
        await engine.prefill(prompt, target, 60)
    assert refused.value.code == code
    assert engine.held() == {"engine requests": 0}
    if code == "transfer_failed":  # known before a byte has moved
        with pytest.raises(EngineError):
            engine.source([1, engine.image_token_id], [rows], "")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"shape": (4, 255)}, "not what this model takes"),
        ({"dtype": "float64"}, "not what this model takes"),
        ({"revision": "of other weights"}, "revision"),
    ],
)
def test_rows_of_another_width_type_or_model_are_not_even_read(change: dict[str, Any], says: str) -> None:
    format = Checkpoint.open(str(MODEL), device="cpu").format
    reader = ImageReader(cast(Any, None), cast(Any, None), cast(Any, None), cast(Any, None), format, deadline=1)
    good = Embedding(
        record=b"",
        shape=(4, format.width),
        dtype=format.dtype,
        grid=(1, 4, 4),
        revision=format.revision,
        content_hash="a" * 64,
    )
    reader._checked(good)
    with pytest.raises(EngineError, match=says) as refused:
        reader._checked(msgspec.structs.replace(good, **change))
    assert refused.value.code == "transfer_failed"


def test_every_test_that_the_page_names_is_there() -> None:
    page = (REPOSITORY / "docs" / "engines.md").read_text(encoding="utf-8")
    files = [
        path for folder in ("engines_sglang", "engines_trtllm") for path in (REPOSITORY / "tests" / folder).glob("*.py")
    ]
    there = {name for path in files for name in re.findall(r"def (test_\w+)", path.read_text(encoding="utf-8"))}
    named = set(re.findall(r"`(test_\w+)`", page))
    assert named and named <= there


async def test_a_prompt_that_prefill_and_decode_count_differently_is_refused() -> None:
    checkpoint = Checkpoint.open(str(MODEL), device="cpu")
    topology = load(None, ["engine=sglang"])
    arguments = Arguments.for_decode(checkpoint, topology)
    engine = SGLangDecodeEngine(checkpoint, arguments, kv_tokens=1024, max_batch=2)
    placeholder = int(checkpoint.config.image_token_id)
    source = msgspec.msgpack.encode(Source("127.0.0.1", 8998, [1, placeholder], [(1, 4, 4)], 7, ""))
    with pytest.raises(EngineError) as refused:
        await engine.reserve(6, Sampling(max_tokens=4), source, 60)  # it is five: one, and four rows
    assert refused.value.code == "transfer_failed"
    assert engine.held() == {"KV tokens": 0, "engine requests": 0}


def test_arguments_for_an_engine_that_takes_none_are_an_error() -> None:
    chosen = ['decode.engine_arguments={"page_size": 64}']
    assert load(None, ["engine=sglang", *chosen]).decode.engine_arguments == {"page_size": 64}
    with pytest.raises(ConfigError, match="transformers engine takes none"):
        load(None, chosen)


async def test_memory_is_given_out_in_order_of_asking() -> None:
    budget = Budget(tokens=10, requests=2)
    await budget.acquire(6)
    order: list[str] = []

    async def ask(name: str, tokens: int) -> None:
        await budget.acquire(tokens)
        order.append(name)

    big, small, last = (asyncio.create_task(ask(*each)) for each in (("big", 8), ("small", 1), ("last", 1)))
    await asyncio.sleep(0)
    assert order == []  # small would fit, but does not overtake
    budget.release(6)
    await asyncio.gather(big, small)
    assert order == ["big", "small"]
    assert not last.done()  # two requests at most
    budget.release(8)
    await last
    budget.release(1)
    budget.release(1)
    assert (budget.used, budget.running) == (0, 0)


async def test_who_stops_waiting_leaves_no_trace() -> None:
    budget = Budget(tokens=10, requests=4)
    await budget.acquire(6)
    waiting = asyncio.create_task(budget.acquire(10))
    behind = asyncio.create_task(budget.acquire(4))
    await asyncio.sleep(0)
    waiting.cancel()
    await behind
    budget.release(4)
    # Cancelled in the very moment in which its turn comes.
    late = asyncio.create_task(budget.acquire(10))
    await asyncio.sleep(0)
    budget.release(6)
    late.cancel()
    with pytest.raises(asyncio.CancelledError):
        await late
    assert (budget.used, budget.running) == (0, 0)


class Manager:
    """SGLang's tokenizer manager as far as ``Stream`` knows it: answers an abort with a last chunk, as SGLang does."""

    def __init__(self) -> None:
        self.log: list[tuple[str, str]] = []
        self.aborted = asyncio.Event()

    def abort_request(self, rid: str) -> None:
        self.log.append(("abort", rid))
        self.aborted.set()


class Engine:
    def __init__(self, chunks: int, refuse: bool = False) -> None:
        self.tokenizer_manager = Manager()
        self._chunks = chunks
        self._refuse = refuse

    async def submit(self, *, rid: str, stream: bool, **request: Any) -> AsyncIterator[dict[str, Any]]:
        assert stream
        if self._refuse:
            raise ValueError("too long")
        log = self.tokenizer_manager.log
        log.append(("start", rid))
        try:
            for n in range(self._chunks):
                yield {"output_ids": [n], "meta_info": {"finish_reason": None}}
            await self.tokenizer_manager.aborted.wait()
            reason = {"type": "abort", "message": "Aborted", "status_code": None}
            yield {"output_ids": [], "meta_info": {"finish_reason": reason}}
            log.append(("end", rid))
        except asyncio.CancelledError:
            log.append(("cancelled", rid))
            raise


@pytest.fixture
def engine_loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


async def test_a_closed_stream_is_aborted_by_its_exact_id_and_ends_before_anything_is_cancelled(
    engine_loop: asyncio.AbstractEventLoop,
) -> None:
    engine = Engine(chunks=3)
    stream = Stream(engine, engine_loop, {})
    outputs = stream.outputs()
    assert [(await anext(outputs)).tokens for _ in range(3)] == [[0], [1], [2]]
    await stream.close()
    ((_, rid), *rest) = engine.tokenizer_manager.log
    assert [what for what, _ in rest][:2] == ["abort", "end"]
    assert {id for _, id in rest} == {rid} and len(rid) == 32
    await stream.close()  # once is enough, twice does no harm


async def test_an_abort_by_the_engine_is_an_error_that_may_be_tried_again(
    engine_loop: asyncio.AbstractEventLoop,
) -> None:
    engine = Engine(chunks=0)
    stream = Stream(engine, engine_loop, {})
    reserved = RoomReservation(7, stream, AsyncExitStack())
    watching = asyncio.create_task(reserved.watch())
    engine_loop.call_soon_threadsafe(engine.tokenizer_manager.aborted.set)
    with pytest.raises(EngineError, match="SGLang ended it"):
        await watching  # also before anybody reads
    with pytest.raises(EngineError) as ended:
        await anext(stream.outputs())
    assert ended.value.code == "transfer_failed" and ended.value.retryable


async def test_what_the_engine_refuses_is_an_error_of_ours(engine_loop: asyncio.AbstractEventLoop) -> None:
    stream = Stream(Engine(chunks=0, refuse=True), engine_loop, {})
    with pytest.raises(EngineError) as refused:
        await anext(stream.outputs())
    assert refused.value.code == "internal"
    await stream.close()


async def test_a_dead_engine_ends_the_stream_at_once(engine_loop: asyncio.AbstractEventLoop) -> None:
    stream = Stream(Engine(chunks=0), engine_loop, {})
    reading = asyncio.ensure_future(anext(stream.outputs()))
    watching = asyncio.create_task(stream.ended())
    gone = asyncio.create_task(stream.ended())
    await asyncio.sleep(0)
    gone.cancel()  # one who stops watching takes nothing from the others
    stream.fail(EngineError("unavailable", "died", retryable=True))
    for waiting in (reading, watching):
        with pytest.raises(EngineError) as ended:
            await waiting
        assert ended.value.code == "unavailable"
    with suppress(EngineError):
        await stream.close()


class Answering(Engine):
    """Answers a probe; any other request waits for its abort."""

    async def submit(self, *, rid: str, stream: bool, **request: Any) -> AsyncIterator[dict[str, Any]]:
        if request.get("probe"):
            yield {"output_ids": [1], "meta_info": {"finish_reason": {"type": "stop"}}}
        else:
            async for chunk in super().submit(rid=rid, stream=stream, **request):
                yield chunk

    def shutdown(self) -> None: ...


async def started_host(monkeypatch: pytest.MonkeyPatch) -> EngineHost:
    host = EngineHost(Arguments({}, {}, {}))

    async def launch() -> None:
        cast(Any, host)._engine = Answering(chunks=0)

    monkeypatch.setattr(host, "_launch", launch)
    await host.start({"probe": True})
    return host


def sys_exit() -> None:
    raise SystemExit(1)


@pytest.mark.parametrize("what", ["SGLang's thread", "a process of the SGLang engine"])
async def test_an_engine_that_died_ends_its_requests_and_the_process(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []
    host = await started_host(monkeypatch)
    with background.ends_process(heard.append):
        async with AsyncExitStack() as stack:
            streams = [await stack.enter_async_context(host.open({})) for _ in range(2)]
            if what == "SGLang's thread":
                host._loop.call_soon_threadsafe(sys_exit)
            else:
                os.kill(os.getpid(), signal.SIGQUIT)
            for stream in streams:
                with pytest.raises(EngineError) as failed:
                    await asyncio.wait_for(stream.ended(), 10)
                assert failed.value.code == "unavailable" and failed.value.retryable
        with pytest.raises(EngineError):
            await stack.enter_async_context(host.open({}))
        await until(lambda: heard == [f"{what} ended unexpectedly"], lambda: heard)
        assert host.requests == 0
        await asyncio.wait_for(host.close(), 10)
