"""Tasks, found by name: one file each.

A task's module has `Options` (its config keys, and perhaps `clashes`, which says what of them
contradicts another or goes unread), `OUTPUT` (the model head it needs) and `Task`;
`classify.py` is the one to read.
"""

from collections.abc import Mapping
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import Any

from jaxft.errors import UserError


def named(name: str) -> ModuleType:
    """The module of the task `name`.

    Raises:
        UserError: there is none, with the list of those there are.
    """
    known = sorted(module.name for module in iter_modules(__path__))
    if name not in known:
        raise UserError(f"task.name={name!r} is no task; there is {', '.join(known)}.")
    return import_module(f"{__name__}.{name}")


def options(name: str) -> type:
    """The dataclass of a task's own config keys."""
    return named(name).Options


def from_json(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a saved `Task`, JSON's lists as the tuples that a frozen dataclass holds."""
    return {key: tuple(x) if isinstance(x, list) else x for key, x in fields.items()}
