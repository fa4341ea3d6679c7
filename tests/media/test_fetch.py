from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
from collections.abc import AsyncIterator
from functools import partial
from random import Random

import pytest

from components.media import Budget, Fetcher, Limits, MediaError, Policy, is_public
from components.media import network as network_module
from components.media.addresses import Address
from tests.media.webserver import WebServer, web_server
from tests.waiting import until

PRIVATE = Policy(allow_private_networks=True)


@pytest.fixture
async def web() -> AsyncIterator[WebServer]:
    async with web_server() as server:
        yield server


async def refused(url: str, limits: Limits | None = None, policy: Policy = PRIVATE) -> MediaError:
    async with Fetcher(limits or Limits(), policy) as fetcher:
        with pytest.raises(MediaError) as caught:
            await fetcher.fetch(url)
    return caught.value


async def test_fetches_and_keeps_the_connection(web: WebServer) -> None:
    url = web.serve("/a.png?size=2", b"picture")
    async with Fetcher(Limits(), PRIVATE) as fetcher:
        assert [await fetcher.fetch(url) for _ in range(3)] == [b"picture"] * 3
    assert web.connections == 1
    assert f"\r\nHost: 127.0.0.1:{web.port}\r\n" in web.requests[0]


async def test_ipv6_host_keeps_its_brackets() -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    try:
        async with web_server("::1") as web, Fetcher(Limits(), PRIVATE) as fetcher:
            web.serve("/", b"six")
            assert await fetcher.fetch(web.url("/", "[::1]")) == b"six"
            assert f"\r\nHost: [::1]:{web.port}\r\n" in web.requests[0]
    except OSError:
        pytest.skip("no IPv6 loopback here")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "0x7f.1", "2130706433"])
async def test_own_network_is_refused_before_connecting(web: WebServer, host: str) -> None:
    error = await refused(web.url("/", host), policy=Policy())
    assert error.code == "image_unreachable"
    assert web.connections == 0


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700:4700::1111", True),
        ("64:ff9b::808:808", True),
        ("2002:808:808::1", True),
        ("127.0.0.1", False),
        ("0.0.0.0", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("198.18.0.1", False),
        ("224.0.1.1", False),
        ("239.255.255.255", False),
        ("255.255.255.255", False),
        ("::", False),
        ("::1", False),
        ("::127.0.0.1", False),
        ("::ffff:10.0.0.1", False),
        ("::ffff:0:127.0.0.1", False),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b::a9fe:a9fe", False),
        ("64:ff9b:1::808:808", False),
        ("2002:7f00:1::1", False),
        ("2002:a9fe:a9fe::1", False),
        ("2001:0:7f00:1::1", False),
        ("fe80::1", False),
        ("fec0::1", False),
        ("fd00::1", False),
        ("ff02::1", False),
        ("2001:db8::1", False),
    ],
)
def test_which_addresses_are_public(address: str, public: bool) -> None:
    assert is_public(ipaddress.ip_address(address)) is public


async def test_one_private_address_among_public_ones_refuses(web: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async def resolve(self: object, host: str) -> list[object]:
        return [ipaddress.ip_address("8.8.8.8"), ipaddress.ip_address("127.0.0.1")]

    monkeypatch.setattr(network_module.GuardedBackend, "_resolve", resolve)
    assert (await refused(web.url("/", "mixed.example"), policy=Policy())).code == "image_unreachable"
    assert web.connections == 0


async def test_a_name_is_asked_once_and_the_judged_address_is_used(
    web: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: the second answer would be another machine."""
    answers = [["127.0.0.1"], ["127.0.0.9"]]

    async def resolve(self: object, host: str) -> list[object]:
        return [ipaddress.ip_address(address) for address in answers.pop(0)]

    monkeypatch.setattr(network_module.GuardedBackend, "_resolve", resolve)
    monkeypatch.setattr(network_module, "is_public", lambda address: str(address) == "127.0.0.1")
    web.serve("/", b"picture")
    async with Fetcher(Limits(), Policy()) as fetcher:
        assert await fetcher.fetch(web.url("/", "rebind.example")) == b"picture"
    assert len(answers) == 1


async def test_next_address_is_tried(web: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async def resolve(self: object, host: str) -> list[object]:
        return [ipaddress.ip_address("127.0.0.77"), ipaddress.ip_address("127.0.0.1")]

    monkeypatch.setattr(network_module.GuardedBackend, "_resolve", resolve)
    web.serve("/", b"picture")
    async with Fetcher(Limits(), PRIVATE) as fetcher:
        assert await fetcher.fetch(web.url("/", "two.example")) == b"picture"


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.com/a.png",
        "file:///etc/passwd",
        "gopher://example.com/",
        "data:image/png;base64,AAAA",
        "example.com/a.png",
        "//example.com/a.png",
        "http://",
        "http:///a.png",
        "http://user:secret@example.com/a.png",
        "http://exa mple.com/",
        "http://example.com:99999/",
        "http://127.0.0.1:65536/",
        "http://127.0.0.1:0/",
        "http://127.0.0.1:-1/",
        "http://[fe80::1%lo]/",
        "http://[::1%25lo]/",
        "http://127.0.0.1\uff0e/",
        "http://a..b/",
        "http://[::1/",
        "http://xn--/",
        "",
        "http://\x00/",
        "http://\udcff/",
        "http://" + "a" * 300 + ".example/",
        "http://no-such-host.invalid/" + "a" * 70_000,
    ],
)
async def test_what_is_not_a_web_address(url: str) -> None:
    error = await refused(url, policy=Policy())
    assert error.code == "image_unreachable"
    assert "secret" not in error.message


async def test_https_only() -> None:
    assert "https://" in (await refused("http://example.com/", policy=Policy(allow_http=False))).message


async def test_redirects_are_followed_and_counted(web: WebServer) -> None:
    web.serve("/3", b"", "302 Found", Location="/2")
    web.serve("/2", b"", "307 Temporary Redirect", Location=web.url("/1"))
    web.serve("/1", b"", "301 Moved", Location="0?last=1")
    web.serve("/0?last=1", b"picture")
    async with Fetcher(Limits(max_redirects=3), PRIVATE) as fetcher:
        assert await fetcher.fetch(web.url("/3")) == b"picture"
    assert "redirects more than 2" in (await refused(web.url("/3"), Limits(max_redirects=2))).message


async def test_redirect_into_the_own_network_is_refused(web: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_module, "is_public", lambda address: str(address) == "127.0.0.1")
    async with web_server("127.0.0.2") as inner:
        inner.serve("/secret", b"secret")
        web.serve("/", b"", "302 Found", Location=inner.url("/secret", "127.0.0.2"))
        assert (await refused(web.url("/"), policy=Policy())).code == "image_unreachable"
        assert inner.connections == 0


@pytest.mark.parametrize(
    "location", ["file:///etc/passwd", "ftp://127.0.0.1/", "http://[", "http://a:b@127.0.0.1/", "//127.0.0.1:65536/"]
)
async def test_redirect_to_what_is_no_web_address(web: WebServer, location: str) -> None:
    web.serve("/", b"", "302 Found", Location=location)
    assert (await refused(web.url("/"))).code == "image_unreachable"


@pytest.mark.parametrize("status", ["404 Not Found", "500 Oops", "204 No Content", "304 Not Modified"])
async def test_other_status(web: WebServer, status: str) -> None:
    error = await refused(web.serve("/", b"", status))
    assert error.code == "image_unreachable"
    assert status[:3] in error.message


async def test_announced_size_is_refused_without_reading(web: WebServer) -> None:
    web.pages["/"] = b"HTTP/1.1 200 OK\r\nContent-Length: 1000001\r\n\r\n"
    assert (await refused(web.url("/"), Limits(max_bytes=1_000_000))).code == "image_too_large"


async def test_size_is_counted_while_streaming(web: WebServer) -> None:
    sent = 0

    async def endless(writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"10000\r\n" + bytes(0x10000) + b"\r\n")
            await writer.drain()
            sent += 0x10000

    web.pages["/"] = endless
    assert (await refused(web.url("/"), Limits(max_bytes=1_000_000))).code == "image_too_large"
    assert sent < 20_000_000


async def test_encoded_answers_are_refused(web: WebServer) -> None:
    assert (await refused(web.serve("/", b"\x1f\x8b", Content_Encoding="gzip"))).code == "image_unreachable"


async def test_one_deadline_for_everything(web: WebServer) -> None:
    async def never(writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    async def drip(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.02)

    web.pages["/never"], web.pages["/drip"] = never, drip
    for path in ("/never", "/drip"):
        error = await refused(web.url(path), Limits(timeout_seconds=0.2))
        assert error.code == "image_unreachable"
        assert "0.2 seconds" in error.message


async def test_broken_answers(web: WebServer) -> None:
    async def hang_up(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nabc")
        writer.close()

    web.pages["/cut"] = hang_up
    web.pages["/noise"] = b"\x00\x01 not HTTP at all\r\n\r\n"
    for path in ("/cut", "/noise"):
        assert (await refused(web.url(path))).code == "image_unreachable"
    assert (await refused("http://127.0.0.1:1/")).code == "image_unreachable"
    assert (await refused("http://no-such-host.invalid/")).code == "image_unreachable"


async def test_proxies_from_the_environment_are_not_used(web: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with Fetcher(Limits(), PRIVATE) as fetcher:
        assert await fetcher.fetch(web.serve("/", b"picture")) == b"picture"


async def test_a_cancelled_fetch_leaves_the_fetcher_usable(web: WebServer) -> None:
    arrived = asyncio.Event()

    async def never(writer: asyncio.StreamWriter) -> None:
        arrived.set()
        await asyncio.Event().wait()

    web.pages["/never"] = never
    async with Fetcher(Limits(), PRIVATE) as fetcher:
        task = asyncio.create_task(fetcher.fetch(web.url("/never")))
        await arrived.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await fetcher.fetch(web.serve("/", b"picture")) == b"picture"


LINES = [
    *(f"HTTP/1.1 {status}" for status in ("200 OK", "302 Found", "200", "99999 X", "2x0 X", "101 Up", "204 No")),
    *("HTTP/1.0 200 OK", "HTTP/9.9 200 OK", "ICY 200 OK", "", "\0", "\x16\x03\x01"),
    "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK",
]
LENGTHS = ["5", "-5", "5, 6", "9" * 5000, "\xb2", "0x5", ""]
TARGETS = [
    *("", "//", "/x", "/\0", "\\\\x", "data:,x", "?" + "a" * 70_000, "http://[::1", "http://[::1%25lo]/", "http://-/"),
    *(f"http://127.0.0.1:{port}/" for port in ("0", "65536", "99999", "-1", "\xb2", "1e3", "")),
    *(f"http://{host}/" for host in ("a..b", "xn--a", "\xff", "a" * 64 + ".com", "1.2.3.4.5", "0x100000000", "u@h")),
]
HEADERS = [
    *(f"Content-Length: {length}" for length in LENGTHS),
    *(f"Location: {target}" for target in TARGETS),
    *(f"Transfer-Encoding: {coding}" for coding in ("chunked", "gzip, chunked", "\xff")),
    *(f"Content-Encoding: {coding}" for coding in ("gzip", "identity", "\xff")),
    *("X: " + "a" * 200_000, ": x", "A B: x", "A:\0", "\0", " folded", "Connection: close", "X\xff: y"),
]
BODIES = [
    *("hello", "", "5\r\nhello\r\n0\r\n\r\n", "zz\r\nhello", "-5\r\nhello", "F" * 30 + "\r\nhello", "5\r\nhel"),
    *("5;" + "x" * 200_000 + "\r\nhello", "5\r\nhelloXX0\r\n\r\n", "5\r\nhello\r\n0\r\nT: \0\r\n\r\n"),
]


def hostile(random: Random) -> bytes:
    headers = random.choices(HEADERS, k=random.randrange(4))
    ends = random.choices(["\r\n", "\n", "\r"], weights=[8, 1, 1], k=len(headers))
    text = random.choice(LINES) + "\r\n" + "".join(map(str.__add__, headers, ends)) + "\r\n" + random.choice(BODIES)
    answer = bytearray(text.encode("latin-1"))
    if random.random() < 0.3:
        for _ in range(4):
            answer[random.randrange(min(len(answer), 3000))] = random.randrange(256)
    return bytes(answer)


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_whatever_a_server_answers_there_is_a_body_or_a_media_error(web: WebServer, scheme: str) -> None:
    random = Random(7)

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(hostile(random))
        if random.random() < 0.2:
            writer.transport.abort()
        else:
            writer.close()

    web.anything = answer
    bodies = 0
    async with Fetcher(Limits(timeout_seconds=5), PRIVATE) as fetcher:
        for _ in range(1500 if scheme == "http" else 200):
            try:
                await fetcher.fetch(f"{scheme}://127.0.0.1:{web.port}/")
                bodies += 1
            except MediaError as error:
                assert error.code == "image_unreachable"
    assert (bodies > 100) == (scheme == "http")


async def test_a_slow_host_occupies_its_own_connections_only(web: WebServer) -> None:
    silent = asyncio.Event()

    async def never(writer: asyncio.StreamWriter) -> None:
        await silent.wait()

    web.pages["/never"] = never
    async with web_server("127.0.0.2") as other, Fetcher(Limits(timeout_seconds=30), PRIVATE) as fetcher:
        other.serve("/", b"picture")
        slow = [asyncio.create_task(fetcher.fetch(web.url("/never"))) for _ in range(300)]
        await until(lambda: web.connections >= 16, lambda: web.connections)
        assert await asyncio.wait_for(fetcher.fetch(other.url("/", "127.0.0.2")), 10) == b"picture"
        assert web.connections == 16
        for task in slow:
            task.cancel()
        await asyncio.gather(*slow, return_exceptions=True)
        silent.set()


async def test_slow_names_keep_nobody_else_from_a_thread(web: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = threading.Event()

    def look_up(host: str) -> list[Address]:
        answer.wait()
        return []

    monkeypatch.setattr(network_module, "_look_up", look_up)
    async with Fetcher(Limits(timeout_seconds=30), PRIVATE) as fetcher:
        slow = [asyncio.create_task(fetcher.fetch(f"http://{number}.slow.example/")) for number in range(100)]
        await asyncio.sleep(0)
        assert await asyncio.wait_for(asyncio.to_thread(lambda: "worked"), 10) == "worked"
        # An address needs no resolver.
        assert await asyncio.wait_for(fetcher.fetch(web.serve("/", b"picture")), 10) == b"picture"
        answer.set()
        outcomes = await asyncio.gather(*slow, return_exceptions=True)
    assert all(isinstance(outcome, MediaError) for outcome in outcomes)


def budget_is(budget: Budget, used: int) -> bool:
    return budget.used == used


async def test_bytes_on_their_way_are_bounded_and_the_oldest_give_way(web: WebServer) -> None:
    silent = asyncio.Event()

    async def half(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n" + bytes(1000))
        await silent.wait()

    web.pages["/half"] = half
    budget = Budget(3500)
    async with Fetcher(Limits(timeout_seconds=30), PRIVATE, budget=budget) as fetcher:
        slow = []
        for number in range(3):
            slow.append(asyncio.create_task(fetcher.fetch(web.url("/half"))))
            await until(partial(budget_is, budget, 1000 * (number + 1)), lambda: budget.used)
        assert await fetcher.fetch(web.serve("/", bytes(1500))) == bytes(1500)
        with pytest.raises(MediaError) as caught:
            await slow[0]
        assert caught.value.code == "overloaded"
        assert not slow[1].done() and budget.used == 2000
        silent.set()
        with pytest.raises(MediaError):
            await fetcher.fetch(web.serve("/", bytes(4000)))
        await asyncio.gather(*slow, return_exceptions=True)
    assert budget.used == 0
