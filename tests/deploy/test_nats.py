"""Every NATS that we start carries the same longest message."""

from __future__ import annotations

import pytest

from components.config.topology import REPOSITORY
from components.runtime.servers import NATS_MAX_PAYLOAD


@pytest.mark.parametrize("file", ["deploy/nats.conf", "deploy/kubernetes/base/nats.conf"])
def test_the_configuration_files_say_what_the_embedded_server_is_told(file: str) -> None:
    lines = (REPOSITORY / file).read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == [f"max_payload: {NATS_MAX_PAYLOAD}"]
