"""The shape of the package, read from its syntax trees: imports point one way, pieces stay small.

Nothing unpickles, and no global random generator is used.
"""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "knowledge_recycling"
NAME = ROOT.name

LAYERS = (
    ("cli",),
    ("study",),
    ("timing",),
    ("status", "template", "pipeline"),
    ("summary",),
    ("releasing",),
    ("auditing",),
    ("shadows",),
    ("choosing",),
    ("stages",),
    ("together",),
    ("artefacts",),
    ("reporting",),
    ("recipe",),
    ("privacy",),
    ("recycling",),
    ("training",),
    ("evaluation",),
    ("models",),
    ("context",),
    ("data", "loggers"),
    ("launch",),
    ("fanout",),
    ("clusters",),
    ("compute",),
    ("config",),
    ("rundir",),
    ("storage",),
    ("extras",),
    ("progress", "interruption", "randomness", "ranks"),
    ("errors",),
)
"""A module may import from its own package and from the layers below; names of a line are apart."""

DEPTH = {name: depth for depth, names in enumerate(LAYERS) for name in names}

FILES = sorted(ROOT.rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def imported(name: str) -> set[str]:
    """Returns the modules of the package that the module `name` imports, wherever it does."""
    found = set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            home = node.module or ""
            whole = {f"{home}.{alias.name}" for alias in node.names}
            found |= {each if each in MODULES else home for each in whole}
    return {each for each in found if each in MODULES and each not in (NAME, name)}


def unit(name: str) -> str:
    return name.split(".")[1]


INSIDE = [name for name in MODULES if name != NAME]


def test_every_module_has_its_layer() -> None:
    assert {unit(name) for name in INSIDE} <= DEPTH.keys()


@pytest.mark.parametrize("name", INSIDE)
def test_imports_point_down(name: str) -> None:
    outside = {other for other in imported(name) if unit(other) != unit(name)}
    wrong = {other for other in outside if DEPTH[unit(other)] <= DEPTH[unit(name)]}
    assert not wrong, f"{name} must not import {sorted(wrong)}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    TopologicalSorter({name: imported(name) for name in INSIDE}).prepare()


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_files_and_functions_are_small(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400
    for node in functions(TREES[module_name(path)]):
        assert length(node) <= 80, f"{node.name} has {length(node)} lines"


def functions(tree: ast.AST) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [node for node in ast.walk(tree) if isinstance(node, kinds)]


def length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def dotted(node: ast.expr) -> str:
    """Returns `a.b.c` of an expression that is such a path, else an empty string."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (owner := dotted(node.value)):
        return f"{owner}.{node.attr}"
    return ""


PICKLING = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def external(name: str) -> set[str]:
    """Returns the top names of all that the module `name` imports."""
    found = set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    return found


def calls(name: str) -> list[ast.Call]:
    return [node for node in ast.walk(TREES[name]) if isinstance(node, ast.Call)]


@pytest.mark.parametrize("name", MODULES)
def test_nothing_unpickles(name: str) -> None:
    # joblib carries parts between the processes of one run; nothing of it is ever read from a file
    allowed = {"joblib"} if name == f"{NAME}.fanout" else set()
    assert not external(name) & (PICKLING - allowed)
    for call in calls(name):
        function = dotted(call.func)
        options = {each.arg: each.value for each in call.keywords}
        assert function not in ("torch.load", "torch.save", "np.loadtxt")
        allowed = options.get("allow_pickle")
        assert allowed is None or (isinstance(allowed, ast.Constant) and allowed.value is False)
        if function in ("np.load", "np.save"):
            assert allowed is not None, f"line {call.lineno}: allow_pickle=False is missing"


SEEDED = {"np.random.default_rng", "np.random.Generator", "np.random.SeedSequence"}
GLOBAL_DRAWS = {
    "torch.rand", "torch.randn", "torch.randint", "torch.randperm", "torch.normal",
    "torch.bernoulli", "torch.multinomial",
}  # fmt: skip
UNNAMED = {"torch.rand_like", "torch.randn_like", "torch.randint_like", "torch.seed"}


@pytest.mark.parametrize("name", MODULES)
def test_no_global_generator_is_used(name: str) -> None:
    assert not external(name) & {"random", "secrets"}
    for call in calls(name):
        function, line = dotted(call.func), f"{name}, line {call.lineno}"
        options = {each.arg for each in call.keywords}
        assert not function.startswith("np.random.") or function in SEEDED, line
        assert function not in UNNAMED, line
        assert function not in GLOBAL_DRAWS or "generator" in options, line
        setting = function in ("torch.manual_seed", "torch.random.fork_rng")
        assert not setting or name == f"{NAME}.models.build", line
