"""The ``triptych`` command."""

from __future__ import annotations

import asyncio
import importlib
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from components.cli import demo, role, survey, way
from components.cli.board import Board
from components.cli.chat import ChatError, ask
from components.cli.supervisor import Supervisor
from components.cli.up import run_stack
from components.config import ConfigError, Topology, load
from components.config.topology import REPOSITORY
from components.protocol import ROLES, Role

app = typer.Typer(
    help="Chat with images, served by encode, prefill and decode workers that scale apart.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
bench = typer.Typer(help="Measure the data plane or the whole service.", no_args_is_help=True)
app.add_typer(bench, name="bench")

Config = Annotated[Path | None, typer.Option("--config", "-c", help="Topology file; without it: one of each role.")]
Sets = Annotated[list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override one setting; repeatable.")]
Port = Annotated[int | None, typer.Option("--port", help="HTTP port (frontend.port).")]
Model = Annotated[str | None, typer.Option("--model", help="Model folder or hub name (model.path).")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show the log lines of all roles here, too.")]


def _load(config: Path | None, sets: list[str] | None, **shortcuts: object) -> Topology:
    """The settings, or the end of the program with what is wrong with them; ``a__b`` in ``shortcuts`` is a.b."""
    given = [f"{key.replace('__', '.')}={value}" for key, value in shortcuts.items() if value is not None]
    try:
        return load(config, [*(sets or ()), *given])
    except ConfigError as error:
        sys.exit(str(error))


def _load_with_model(config: Path | None, sets: list[str] | None, **shortcuts: object) -> Topology:
    """As ``_load``, and the end of the program where the model cannot be served: five roles would say so at once."""
    topology = _load(config, sets, **shortcuts)
    # Imported here: no other command should wait for it.
    found = importlib.import_module("components.doctor.model").check_model(topology)
    if found.level == "fail":
        sys.exit(f"model.path: {found.says}; {found.change}")
    return topology


@app.command()
def up(
    config: Config = None, port: Port = None, model: Model = None, sets: Sets = None, verbose: Verbose = False
) -> None:
    """Run the whole topology in this terminal; Ctrl-C drains it."""
    topology = _load_with_model(config, sets, frontend__port=port, model__path=model)
    board = Board(Console())

    async def greet(stack: Supervisor) -> int:
        board.say(f"{stack.url} answers for model {stack.topology.model.name}", "bold green")
        board.say(demo.curl(stack.url, stack.topology.model.name))
        board.say(f"log lines of all roles: {stack.log_file}", "dim")
        return 0

    sys.exit(asyncio.run(run_stack(topology, board, verbose, greet, once=False)))


@app.command("demo")
def demo_command(
    config: Config = None,
    port: Port = None,
    model: Model = None,
    sets: Sets = None,
    verbose: Verbose = False,
    once: Annotated[bool, typer.Option("--once", help="Stop after the answer.")] = False,
) -> None:
    """Run the whole topology, ask it about a sample picture, show the way the request took, and go on serving."""
    topology = _load_with_model(config, sets, frontend__port=port, model__path=model)
    board = Board(Console())
    sys.exit(asyncio.run(run_stack(topology, board, verbose, demo.session(board, once), once)))


@app.command()
def run(
    name: Annotated[Role, typer.Argument(metavar="ROLE", help="frontend, processor, encode, prefill or decode")],
    config: Config = None,
    model: Model = None,
    sets: Sets = None,
    instance: Annotated[
        str | None, typer.Option("--id", help="Name of this instance; without it: a fresh one.")
    ] = None,
) -> None:
    """Run one role alone: what compose, Slurm and Kubernetes start."""
    load = _load if name == "frontend" else _load_with_model  # which needs the model's name only
    sys.exit(role.start(name, load(config, sets, model__path=model), instance))


@app.command()
def status(
    name: Annotated[Role | None, typer.Argument(metavar="[ROLE]", help="Without it: all of them.")] = None,
    config: Config = None,
    sets: Sets = None,
    here: Annotated[bool, typer.Option("--here", help="Only instances of this host or container.")] = False,
    wait: Annotated[float, typer.Option(help="Longest time to wait for an answer, in seconds.")] = 5.0,
) -> None:
    """Ask every registered instance whether it answers and what it holds; status 1 unless there is one and all do."""
    topology = _load(config, sets)
    roles = ROLES if name is None else (name,)
    try:
        found = asyncio.run(survey.ask_all(topology, roles, survey.this_host() if here else None, wait))
    except ConnectionError as error:
        sys.exit(str(error))
    if not found.reports and not found.refused:
        sys.exit(f"no {name or 'instance'} is registered{' from this host' if here else ''}")
    Console().print(survey.table(found))
    # What a stranger wrote into etcd must not make a health check fail.
    sys.exit(not found.reports or any(report.held is None for report in found.reports))


@app.command()
def chat(
    text: Annotated[str, typer.Argument(help="The question.")],
    image: Annotated[list[str] | None, typer.Option("--image", help="A file or URL; repeatable.")] = None,
    url: Annotated[str, typer.Option(help="The running server.")] = "http://127.0.0.1:8000",
    model: Annotated[str | None, typer.Option(help="Served model; without it: the first one.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer; without it: what the context holds.")] = None,
    temperature: Annotated[float, typer.Option(help="0: always the likeliest token.")] = 0.0,
    trace: Annotated[bool, typer.Option("--trace", help="Show the way the request took.")] = False,
) -> None:
    """Ask a running server, and print the answer as it comes."""
    console = Console()
    question = ask(
        url,
        text,
        image or (),
        write=lambda piece: print(piece, end="", flush=True),
        model=model,
        max_tokens=max_tokens,
        temperature=temperature,
        trace=trace,
    )
    try:
        answer = asyncio.run(question)
    except ChatError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
    print()
    if trace:
        console.print(way.table(answer.hops))


@app.command()
def doctor(
    config: Config = None,
    model: Model = None,
    sets: Sets = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
    before: Annotated[bool, typer.Option("--before", help="With -c: could it start here? Not: does it run?")] = False,
    lanes: Annotated[bool, typer.Option("--lanes/--no-lanes", help="Measure transfers between processes.")] = True,
) -> None:
    """Is this node fit to serve, and with -c: does that whole topology run? Says what to change; status 1 if not."""
    topology = _load(config, sets, model__path=model)
    # Imported here: no other command should wait for what the doctor needs.
    command = importlib.import_module("components.doctor.command")
    sys.exit(command.doctor(topology, deployment=config is not None and not before, lanes=lanes, json=json))


@app.command()
def nodes(
    node_list: Annotated[Path, typer.Option("--nodes", "-n", help="Which machine runs what: docs/deploy-cluster.md.")],
    config: Config = None,
    model: Model = None,
    sets: Sets = None,
    check: Annotated[bool, typer.Option("--check", help="Only look whether every node is fit.")] = False,
    lanes: Annotated[bool, typer.Option("--lanes/--no-lanes", help="Measure transfers on every node first.")] = True,
) -> None:
    """Run one topology over several machines, by ssh or srun; Ctrl-C drains it and ends everything there."""
    command = importlib.import_module("components.nodes.command")
    overrides = [*(sets or ()), *([f"model.path={model}"] if model else ())]
    try:
        sys.exit(command.run(config, overrides, node_list, check=check, lanes=lanes))
    except ConfigError as error:
        sys.exit(str(error))


@app.command()
def plan(
    model: Annotated[
        Path, typer.Argument(help="A model's folder, or its config.json.", show_default="the bundled one")
    ] = REPOSITORY / "models" / "tiny-vl",
    gpu: Annotated[str, typer.Option(help="a100, l40s, h100, h200 or b200.")] = "h100",
    gpus: Annotated[int | None, typer.Option(help="Find the highest rate that so many hold.")] = None,
    rate: Annotated[float, typer.Option(help="Requests a second.")] = 1.0,
    images: Annotated[int, typer.Option(min=0, help="Pictures in a request.")] = 1,
    size: Annotated[str, typer.Option(help="Their width x height in pixels.")] = "1280x720",
    text: Annotated[int, typer.Option(min=1, help="Text tokens in a request.")] = 200,
    output: Annotated[int, typer.Option(min=1, help="Tokens of an answer.")] = 300,
    itl: Annotated[float, typer.Option(help="Longest time between two tokens, in milliseconds.")] = 50.0,
    json: Annotated[bool, typer.Option("--json", help="One JSON object instead of the arithmetic.")] = False,
) -> None:
    """Propose a split of encode, prefill and decode workers for a model and its traffic, and show the arithmetic."""
    command = importlib.import_module("components.plan.command")
    request = command.Request(rate, images, size, text, output, itl / 1e3)
    sys.exit(command.main(model, gpu, gpus, request, json=json))


_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@bench.command("transfer", context_settings=_PASS_ON)
def bench_transfer(context: typer.Context) -> None:
    """The data plane alone: one-sided reads and writes by size and lane."""
    _bench("benchmarks.transfer", context.args)


@bench.command("serve", context_settings=_PASS_ON)
def bench_serve(context: typer.Context) -> None:
    """The whole service under load: time to first token, tokens per second."""
    _bench("benchmarks.serve", context.args)


@bench.command("sglang", context_settings=_PASS_ON)
def bench_sglang(context: typer.Context) -> None:
    """SGLang through the panels beside its own prefill/decode split, on GPUs."""
    _bench("benchmarks.sglang_split", context.args)


def _bench(module: str, arguments: list[str]) -> None:
    # Imported here: no other command should wait for what a benchmark needs.
    try:
        sys.exit(importlib.import_module(module).main(arguments))
    except ConfigError as error:
        sys.exit(str(error))


def main() -> None:
    """Entry point of the ``triptych`` script."""
    app()


if __name__ == "__main__":
    main()
