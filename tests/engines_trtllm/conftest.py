"""TensorRT-LLM's stand-in on the path, before anything imports the adapter: its wheel cannot be installed here."""

from __future__ import annotations

import sys
from pathlib import Path

CONTRACT = Path(__file__).parent / "contract"
sys.path.insert(0, str(CONTRACT))
