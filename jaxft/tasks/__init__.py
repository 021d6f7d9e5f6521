"""Tasks, found by name: one file each.

A task's module has `Options` (its config keys, and perhaps `clashes`, which says what of them
contradicts another or goes unread), `OUTPUT` (the model head it needs), `objective` (which advice
`plan` gives) and `Task`, a `Base`; `classify.py` is the one to read.
"""

from collections.abc import Mapping, Sequence
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import Any

from jaxft.errors import UserError


class Base:
    """What a task may leave out: here it has no such thing."""

    def check(self, targets: Sequence[Any], source: str) -> None:
        """Raises: UserError where the targets of a split give no loss."""

    def files(self, tokenizer: Any, origin: Mapping[str, Any]) -> dict[str, Any]:
        """JSON files that an export has beside the model's."""
        return {}

    def preview(self, features: Any, tokenizer: Any) -> Sequence[Any]:
        """Examples worth a look before training, as `supervision.preview` shows them."""
        return ()

    def wanted(self, rows: Any, tools: Any) -> Sequence[Any]:
        """What `generated` needs of a split: questions and right answers."""
        return ()

    def compile(self, wanted: Sequence[Any], tools: Any) -> None:
        """Compiles what `generated` will run; the weights may be abstract."""

    def generated(self, wanted: Sequence[Any], tools: Any) -> dict[str, float]:
        """Scores of answers that the model writes."""
        return {}

    def confusion(self, outputs: Mapping[str, Any], targets: Sequence[Any]) -> Any:
        """Counts [C, C], rows true, columns predicted, where rows have one of C classes."""
        return None

    def per_class(self, outputs: Mapping[str, Any], targets: Sequence[Any]) -> Any:
        """Counts [C, 3]: the rows of each class, its answers, and the right ones of these."""
        return None

    def warning(self, outputs: Mapping[str, Any], targets: Sequence[Any]) -> str | None:
        """What looks broken in the answers as a whole."""
        return None


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
