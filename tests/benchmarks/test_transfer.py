"""What the transfer benchmark makes of its seconds: the lines beside raw NIXL and what it says of the targets."""

from __future__ import annotations

from typing import Any

from benchmarks.transfer_page import gpu_verdict, verdict
from benchmarks.transfer_points import KIB, MIB, Point, compare, points, row


def rows(point: Point, raw: float, ours: float) -> list[dict[str, Any]]:
    return [row("raw", point, [raw] * 5), row("ours", point, [ours] * 5)]


def test_gpus_are_held_to_raw_and_to_a_plain_copy() -> None:
    one = Point("cuda:0", "cuda:1", "read", 64 * MIB)
    many = Point("cuda:0", "cuda:1", "read", 64 * MIB, in_flight=16)
    small = Point("cuda:0", "cuda:1", "read", 4 * MIB)
    copy = row("copy", Point("cuda:0", "cuda:1", "copy", 64 * MIB), [200e-6] * 5)
    said = gpu_verdict(compare(rows(one, 300e-6, 400e-6) + rows(many, 4e-3, 4e-3) + rows(small, 60e-6, 110e-6)), [copy])
    assert said == [
        "- read of 64 MiB: 75% of raw NIXL's bandwidth (wanted: 95%).",
        "- read of 64 MiB: 50% of a plain copy's bandwidth (wanted: 75%).",
        "- read of 64 MiB, 16 in flight: 100% of raw NIXL's bandwidth (wanted: 95%).",
        "- read of 64 MiB, 16 in flight: 80% of a plain copy's bandwidth (wanted: 75%).",
        "- read of 4 MiB: +50 µs (wanted: at most +60 µs).",
    ]
    assert verdict(compare(rows(one, 300e-6, 400e-6))) == []


def test_host_memory_is_held_to_raw() -> None:
    large, small = Point("cpu", "cpu", "write", MIB), Point("cpu", "cpu", "write", 64 * KIB)
    said = verdict(compare(rows(large, 1e-3, 2e-3) + rows(small, 10e-6, 110e-6)))
    assert said[0].startswith("- From 1 MiB up: 0 of 1 medians are within 1.25 of raw NIXL's; not: write of 1 MiB.")
    assert said[1] == "- write of 64 KiB: +100 µs (wanted: at most +150 µs)."
    assert gpu_verdict(compare(rows(large, 1e-3, 2e-3)), []) == []


def test_many_in_flight_fit_the_memory_that_one_needs() -> None:
    """The benchmark allocates what the largest point moves at once."""
    found = points("cuda:0", "cuda:1", (64 * KIB, 64 * MIB, 1024 * MIB), quick=False, most=1024 * MIB)
    assert max(point.size * point.in_flight for point in found) == 1024 * MIB
    assert any(point.in_flight == 16 and point.size == 64 * MIB for point in found)
