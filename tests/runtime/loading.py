"""A role whose model never is loaded: ``python -m tests.runtime.loading ROLE NATS ETCD``; says when it has begun."""

from __future__ import annotations

import sys
import time
from typing import Any

from components.cli import role
from components.config import Etcd, Model, Nats, Topology
from components.engines.transformers.checkpoint import Checkpoint
from components.protocol import ROLES
from tests.model import MODEL


def hang(*_: object) -> Any:
    print("loading", flush=True)
    time.sleep(3600)


if __name__ == "__main__":
    name, nats, etcd = sys.argv[1:]
    Checkpoint.language_model = Checkpoint.vision_tower = hang  # type: ignore[method-assign]
    topology = Topology(model=Model(path=str(MODEL)), nats=Nats(servers=(nats,)), etcd=Etcd(endpoints=(etcd,)))
    sys.exit(role.start(next(each for each in ROLES if each == name), topology, None))
