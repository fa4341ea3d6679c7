"""``triptych demo``: one question about a picture of the repository, and the way it took."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from components.cli import way
from components.cli.board import Board
from components.cli.chat import ChatError, ask
from components.cli.supervisor import Supervisor
from components.config.topology import REPOSITORY

PICTURE = REPOSITORY / "examples" / "pictures" / "shapes.png"
QUESTION = "What is in this picture?"


def curl(url: str, model: str) -> str:
    """A request to copy into another terminal."""
    body = {"model": model, "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 32}
    return f"  curl {url}/v1/chat/completions -H 'content-type: application/json' \\\n    -d '{json.dumps(body)}'"


def _command() -> str:
    """How this program was called: ``make demo`` calls it by its path, for it is not on the user's PATH."""
    return sys.argv[0] if Path(sys.argv[0]).name == "triptych" else "triptych"


def session(board: Board, once: bool) -> Callable[[Supervisor], Coroutine[Any, Any, int]]:
    """Asks, shows the answer as it comes and each hop; the exit status is 1 if there is no answer."""

    async def run(stack: Supervisor) -> int:
        console = board.console
        picture = PICTURE.relative_to(REPOSITORY)
        console.print()
        console.print(f"[bold]{QUESTION}[/bold]  [dim]({picture})[/dim]", highlight=False)

        def write(piece: str) -> None:
            console.file.write(piece)
            console.file.flush()

        try:
            answer = await ask(stack.url, QUESTION, [str(PICTURE)], write, max_tokens=64, trace=True)
        except ChatError as error:
            board.say(str(error), "red")
            return 1
        console.print("\n")
        if answer.hops:
            console.print(way.table(answer.hops))
        if not once:
            board.say(f"\n{stack.url} goes on answering until Ctrl-C; another question:", "bold green")
            board.say(f"  {_command()} chat --url {stack.url} --image {picture} 'How many shapes are there?'")
            board.say(curl(stack.url, stack.topology.model.name))
        return 0

    return run
