from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from tests.processor.models import make_model


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "small")


@pytest.fixture(scope="session")
def tokenizer(model: Path) -> Tokenizer:
    """As loaded from its file: special tokens in text are taken for special tokens."""
    return Tokenizer.from_file(str(model / "tokenizer.json"))
