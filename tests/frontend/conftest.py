from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from tokenizers import Tokenizer

from tests.frontend.stack import Decoder, Stack, running
from tests.processor.models import make_model


@pytest_asyncio.fixture(loop_scope="session", scope="session")
async def whole_stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    model = make_model(tmp_path_factory.mktemp("models") / "small")
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    async with running(tmp_path_factory.mktemp("servers"), model, tokenizer) as stack:
        yield stack


@pytest_asyncio.fixture(loop_scope="session")
async def stack(whole_stack: Stack) -> AsyncIterator[Stack]:
    """The one stack of all tests here, its stand-in as new; afterwards nothing may be left held."""
    fresh = Decoder(whole_stack.decoder.connector, whole_stack.decoder.tokenizer)
    vars(whole_stack.decoder).update(vars(fresh))
    yield whole_stack
    await whole_stack.idle()
