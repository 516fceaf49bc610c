"""The import rules of docs/design.md, checked on the syntax tree. Run as a test."""

import ast
from pathlib import Path

import weir

ROOT = Path(__file__).parent.parent / "weir"

# package or module → its level; a module may import only lower levels, or its own package
LEVEL = {
    "core": 0, "errors": 0, "folders": 0, "peers": 0, "spec": 0, "linux": 0,
    "balance": 1, "cost": 1, "fields": 1, "gguf": 1, "http": 1, "params": 1,
    "progress": 1, "rows": 1, "wire": 1,
    "config": 2, "kv": 2, "ops": 2, "text": 2, "hub": 2,
    "grammar": 3, "sched": 3, "models": 3, "options": 3,
    "ranker": 4, "runtime": 4,
    "executor": 5,
    "engine": 6,
    "client": 7, "policies": 7, "trial": 7,
    "connect": 8, "device": 8, "offload": 8, "sim": 8,
    "build": 9,
    "llm": 10, "server": 10, "host": 10, "bench": 11, "batch": 11, "lang": 11, "router": 11,
    "doctor": 12, "demo": 12, "cli": 13, "__main__": 14,
}  # fmt: skip
TORCH = {"ops", "models", "runtime", "device", "build"}
TORCH_FILES = {
    "bench/kernels.py", "executor/local.py",
    "ranker/backbone.py", "ranker/train.py", "ranker/train_light.py",
    "ranker/train_transformer.py", "ranker/transformer.py",
}  # fmt: skip


def imports(path: Path):
    """(line, module, inside a function?) of every import in a file."""
    tree = ast.parse(path.read_text())
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, id(node) in inside
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield node.lineno, node.module or "", id(node) in inside


def part(module: str) -> str | None:
    names = module.split(".")
    return names[1] if names[0] == "weir" and len(names) > 1 else None


def violations() -> list[str]:
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        own = name.split("/")[0].removesuffix(".py")
        if own == "__init__":
            own = "cli"
        for line, module, nested in imports(path):
            at = f"weir/{name}:{line}"
            target = part(module)
            if module.split(".")[0] == "torch" and own not in TORCH and name not in TORCH_FILES:
                found.append(f"{at}: torch does not belong here")
            if target is None:
                continue
            if nested:
                found.append(f"{at}: import of weir inside a function")
            if target not in LEVEL:
                found.append(f"{at}: {target} has no level")
            elif target != own and LEVEL[target] >= LEVEL[own]:
                found.append(f"{at}: {own} must not import {target}")
        if "TYPE_CHECKING" in path.read_text():
            found.append(f"weir/{name}: TYPE_CHECKING: the type is on the wrong side")
    return found


def test_imports_go_down():
    assert violations() == []


def test_every_part_has_a_level():
    parts = {p.name.removesuffix(".py") for p in ROOT.iterdir() if p.suffix == ".py" or p.is_dir()}
    assert parts - LEVEL.keys() - {"__init__", "__pycache__", "py.typed", "data"} == set()


def test_no_module_hides_what_the_package_offers():
    """`weir.name` is the module once anybody has imported it."""
    assert not LEVEL.keys() & set(weir.__all__)
