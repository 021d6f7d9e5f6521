"""Imports run one way: ground <- models, tasks, step <- experiment <- what runs it <- the verbs."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "jaxft"
RANKS = {"models": 1, "tasks": 1, "step": 1, "generate": 1}
RANKS |= dict.fromkeys(("source", "drawing", "experiment"), 2)
ABOVE = ("scoring", "trained", "summary", "card", "parts", "memory_error", "planning")
RANKS |= dict.fromkeys(ABOVE, 3)
VERBS = ("train", "evaluate", "predict", "export", "plan")
RANKS |= dict.fromkeys(VERBS, 4)
"""A module may import what has its own rank or a lower one; what is not named here is ground, rank
0.
"""
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
    if path != PACKAGE / "__init__.py"
}


def imported(module: str) -> set[str]:
    """Names below `jaxft` that a module imports, wherever it does."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    inside = {name.removeprefix("jaxft.") for name in found if name.startswith("jaxft.")}
    # `from jaxft.errors import UserError` is about the module errors.
    return {name if name in MODULES else name.rpartition(".")[0] for name in inside}


def top(module: str) -> str:
    return module.partition(".")[0]


def rank(module: str) -> int:
    return RANKS.get(top(module), 0)


def test_the_walk_sees_what_is_known():
    assert {"experiment", "scoring", "config", "errors"} <= imported("train")
    assert imported("errors") == set()
    assert "nn.encoder" in imported("models.bert")


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_imports_nothing_above_it(module):
    above = {name for name in imported(module) if rank(name) > rank(module)}
    assert not above


@pytest.mark.parametrize(
    "module", sorted(name for name in MODULES if top(name) in ("models", "tasks"))
)
def test_families_and_tasks_know_neither_each_other_nor_the_config(module):
    strangers = {"config", "schema", "sections", "values", "models", "tasks", "step"} - {
        top(module)
    }
    siblings = {name for name in imported(module) if name.startswith(f"{top(module)}.")}
    assert not {name for name in imported(module) if top(name) in strangers}
    if module in ("models", "tasks"):
        assert not siblings, "they are found by name"


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb in MODULES])
def test_verbs_do_not_import_each_other(verb):
    assert not imported(verb) & set(VERBS)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_what_a_plain_install_lacks_is_imported_where_it_is_used(module):
    body = ast.parse(MODULES[module].read_text()).body
    plain = [node for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in plain if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in plain if isinstance(node, ast.ImportFrom)}
    assert not {top(name) for name in names} & {"torch", "tensorflow", "wandb"}
