"""The rules of the house that no other tool checks: imports, sizes, names, and where softmax lives."""

import ast
import importlib
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "regard"
MODULES = sorted(SOURCE.rglob("*.py"))

# Imported where they are used, or not at all: each costs more than the 50 ms that regard may add to torch.
HEAVY = {
    "av", "fastapi", "huggingface_hub", "pandas", "PIL", "pyarrow", "rich", "sacrebleu", "sacremoses",
    "tensorboard", "tokenizers", "torch._dynamo", "torch._inductor", "transformers", "typer", "uvicorn",
}  # fmt: skip

# Calls of softmax outside attention/ that are not softmax(QKᵀ), each with what it normalises.
OTHER_SOFTMAX = {
    "generation/beam.py": "next-token log-probabilities",
    "pipelines/hearing.py": "probability that nothing is said",
    "pipelines/classification.py": "classes",
    "training/tasks/classify_text.py": "classes, on which two passes are to agree",
}


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def name_of(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def called_name(call: ast.Call) -> str:
    """The last part of what is called: `softmax` for `torch.softmax(...)` and `scores.softmax(...)`."""
    function = call.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))


def modules_after(statement: str) -> set[str]:
    """Names in sys.modules after `statement` in a fresh interpreter."""
    code = f"{statement}\nimport sys\nprint('\\n'.join(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


def test_import_brings_no_heavy_module():
    assert "torch" not in modules_after("import regard.cli")
    added = modules_after("import regard; regard.attend") - modules_after("import torch")
    assert "regard.attention" in added
    assert not HEAVY & added
    # Whatever torch does not load itself is somebody's start-up time: only regard and the standard library.
    strangers = {name.partition(".")[0] for name in added} - sys.stdlib_module_names - {"regard", "torch"}
    assert not strangers


def test_public_names_exist_and_have_docstrings():
    regard = importlib.import_module("regard")
    assert regard.__all__
    for name in regard.__all__:
        thing = getattr(regard, name)
        if callable(thing) or inspect.ismodule(thing):
            assert (thing.__doc__ or "").strip(), f"regard.{name} has no docstring"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_file_and_function_sizes(path: Path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= 400, f"{name_of(path)} has {lines} lines"
    for function in functions(parse(path)):
        length = (function.end_lineno or function.lineno) - function.lineno + 1
        assert length <= 60, f"{name_of(path)}:{function.lineno} {function.name} has {length} lines"


def test_softmax_lives_in_attention():
    found = {
        name_of(path)
        for path in MODULES
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Call)
        and called_name(node) in {"softmax", "log_softmax"}
        and not name_of(path).startswith("attention/")
    }
    assert not found - set(OTHER_SOFTMAX), "call regard.attention, or say in OTHER_SOFTMAX what is normalised"


def test_attention_knows_no_token():
    for path in (SOURCE / "attention").rglob("*.py"):
        for node in ast.walk(parse(path)):
            names = [getattr(node, field, None) for field in ("id", "attr", "arg", "name")]
            found = [n for n in names if isinstance(n, str) and "token" in n.lower()]
            assert not found, f"{name_of(path)}: {found}"


def test_no_module_is_named_like_what_its_package_exports():
    for package in SOURCE.rglob("__init__.py"):
        name = ".".join(("regard", *package.parent.relative_to(SOURCE).parts))
        exported = set(getattr(importlib.import_module(name), "__all__", ()))
        folder = package.parent
        siblings = {p.stem for p in (*folder.glob("*.py"), *(q.parent for q in folder.glob("*/__init__.py")))}
        assert not exported & siblings, f"{name} hides {sorted(exported & siblings)}"


def test_modules_import_each_other_and_not_the_package():
    """`from regard import attend` inside the house would go round the direction of its imports."""
    folders = {p.stem for p in SOURCE.iterdir()}
    for path in MODULES:
        if name_of(path) in {"__init__.py", "cli/__init__.py"}:
            continue
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.ImportFrom) and node.module == "regard" and node.level == 0:
                assert {alias.name for alias in node.names} <= folders, f"{name_of(path)}:{node.lineno}"
            if isinstance(node, ast.Import):
                assert "regard" not in {alias.name for alias in node.names}, f"{name_of(path)}:{node.lineno}"


def test_imports_follow_the_direction_of_the_house():
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_logo=True))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
