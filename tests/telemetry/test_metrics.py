"""What a module declares on the registry is in the text that Prometheus reads."""

from __future__ import annotations

from prometheus_client import Counter
from prometheus_client.parser import text_string_to_metric_families

from components.telemetry.metrics import REGISTRY, render


def test_a_declared_counter_is_rendered() -> None:
    counter = Counter("test_things", "Things.", ["kind"], registry=REGISTRY)
    try:
        counter.labels("x").inc(2)
        families = {family.name: family for family in text_string_to_metric_families(render().decode())}
        assert [(s.name, s.labels, s.value) for s in families["test_things"].samples] == [
            ("test_things_total", {"kind": "x"}, 2.0)
        ]
        assert "process_resident_memory_bytes" in families
    finally:
        REGISTRY.unregister(counter)
