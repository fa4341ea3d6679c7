"""The contract against the wheel it stands for, read and never imported: that works without a GPU.

PyPI has a stub only, so this part runs where somebody has the wheel:

    TRTLLM_WHEEL=tensorrt_llm-….whl pytest tests/engines_trtllm/test_wheel.py
"""

from __future__ import annotations

import ast
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.engines_trtllm.conftest import CONTRACT

ROOT = CONTRACT / "tensorrt_llm"
FILES = [
    "disaggregated_params.py",
    "sampling_params.py",
    "executor/result.py",
    "llmapi/llm.py",
    "llmapi/llm_args.py",
    "llmapi/mm_encoder.py",
    "_torch/shared_tensor/shared_tensor.py",
]
EXPORTS = ["llmapi/__init__.py", "executor/__init__.py", "_torch/shared_tensor/__init__.py"]
# Fields that some releases lack; the adapter looks before it uses them.
PROBED = {
    "DisaggregatedParams": {"disagg_request_id", "ctx_dp_rank", "ctx_info_endpoint"},
    "CacheTransceiverConfig": {"transceiver_runtime", "kv_transfer_timeout_ms"},
}

# What the adapter itself calls; other constructors are each side's own affair.
CONSTRUCTED = {("LLM", "__init__"), ("MultimodalEncoder", "__init__")}
HELPERS = {"Response", "StrictBaseModel"}

Read = Callable[[str], str]


@dataclass
class Class:
    fields: set[str] = field(default_factory=set)
    methods: dict[str, set[str]] = field(default_factory=dict)


def classes(source: str) -> dict[str, Class]:
    """Each public class with its annotated fields and its methods' arguments, bases in the same file included."""
    nodes = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}

    def read(name: str) -> Class:
        found = Class()
        for base in nodes[name].bases:
            if isinstance(base, ast.Name) and base.id in nodes:
                inherited = read(base.id)
                found.fields |= inherited.fields
                found.methods |= inherited.methods
        for part in nodes[name].body:
            match part:
                case ast.AnnAssign(target=ast.Name(id=target)):
                    found.fields.add(target)
                case ast.FunctionDef() | ast.AsyncFunctionDef():
                    arguments = part.args
                    names = {each.arg for each in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)}
                    found.methods[part.name] = names
        return found

    return {name: read(name) for name in nodes if not name.startswith("_")}


def missing(ours: dict[str, Class], theirs: dict[str, Class]) -> list[str]:
    """What the contract has and the wheel has not: on that our adapter would build in vain."""
    problems = []
    for name, contract in ours.items():
        if name not in theirs:
            if name not in HELPERS:
                problems.append(f"no class {name}")
            continue
        real = theirs[name]
        for each in sorted(contract.fields - real.fields - PROBED.get(name, set())):
            problems.append(f"{name} has no field {each}")
        for method, arguments in contract.methods.items():
            if method.startswith("_") and (name, method) not in CONSTRUCTED:
                continue
            if method not in real.methods:
                problems.append(f"{name} has no method {method}")
            elif lacking := sorted(arguments - real.methods[method]):
                problems.append(f"{name}.{method} does not take {', '.join(lacking)}")
    return problems


def exported(path: str, read: Read) -> set[str]:
    """Names that can be imported from a package's ``__init__.py``, whatever way it makes them available."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(read(path))):
        match node:
            case ast.ImportFrom(module=str(module), names=[ast.alias(name="*")]):
                names |= exported(path.replace("__init__", module), read)
            case ast.ImportFrom():
                names |= {alias.asname or alias.name for alias in node.names}
            case ast.Constant(value=str(text)):  # __all__, or a table of what is imported late
                names.add(text)
    return names


def ours(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def wheel() -> zipfile.ZipFile:
    path = os.environ.get("TRTLLM_WHEEL")
    if path is None:
        pytest.skip("PyPI has a stub of tensorrt-llm only; TRTLLM_WHEEL=<the real wheel> runs this")
    return zipfile.ZipFile(path)


@pytest.mark.parametrize("path", FILES)
def test_the_wheel_has_what_the_contract_promises(path: str, wheel: zipfile.ZipFile) -> None:
    assert missing(classes(ours(path)), classes(wheel.read(f"tensorrt_llm/{path}").decode())) == []


@pytest.mark.parametrize("path", EXPORTS)
def test_the_wheel_exports_what_is_imported(path: str, wheel: zipfile.ZipFile) -> None:
    theirs = exported(path, lambda name: wheel.read(f"tensorrt_llm/{name}").decode())
    tree = ast.parse(ours(path))
    imported = {alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert imported <= theirs


def test_the_wheel_says_what_we_build_on(wheel: zipfile.ZipFile) -> None:
    """Habits that no signature shows, by the words that make them."""
    llm = wheel.read("tensorrt_llm/llmapi/llm.py").decode()
    assert "multi_modal_embeddings" in llm, "the prompt's key for embeddings"
    assert "support_mm_disagg" in llm, "embeddings as handles"
    assert "mrope_position_ids_handle" in llm, "rotary positions as handles"
    registry = wheel.read("tensorrt_llm/_torch/models/modeling_qwen2vl.py").decode()
    assert "support_multimodal_disaggregated" in registry, "Qwen2.5-VL takes handles"


@pytest.mark.parametrize("path", FILES)
def test_the_contract_is_read_whole(path: str) -> None:
    """This test's own eyes: against itself nothing is missing, and without any one field something is."""
    contract = classes(ours(path))
    assert contract and missing(contract, contract) == []
    for name, each in contract.items():
        for gone in each.fields - PROBED.get(name, set()):
            less = {**contract, name: Class(each.fields - {gone}, each.methods)}
            assert missing(contract, less) == [f"{name} has no field {gone}"]
        for method in each.methods:
            if not method.startswith("_") or (name, method) in CONSTRUCTED:
                less = {**contract, name: Class(each.fields, {**each.methods, method: {"self"}})}
                assert len(missing(contract, less)) == bool(each.methods[method] - {"self"})


def test_every_name_that_the_adapter_imports_is_in_the_contract() -> None:
    source = Path("components/engines/trtllm/release.py").read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("tensorrt_llm."):
            path = node.module.removeprefix("tensorrt_llm.").replace(".", "/") + "/__init__.py"
            assert {alias.name for alias in node.names} <= exported(path, ours)
