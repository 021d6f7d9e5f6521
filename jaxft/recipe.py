"""A recipe file -> the keys that it sets, as nested dicts.

A recipe is a Python file with `get_config(arg="")`, which returns nested dicts or an ml_collections
ConfigDict. `arg` is the model that it fits the other keys to: what stands behind the file's name
and a colon or, without that, the flag model.pretrained.
"""

import inspect
import traceback
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import ml_collections

from jaxft.errors import UserError
from jaxft.values import short


def run_recipe(path: Path, arg: str, model: str | None) -> dict[str, Any]:
    """What a recipe file returns, as nested dicts; `model` is its argument where `arg` is empty."""
    if not path.is_file():
        near = sorted(entry.name for entry in path.parent.glob("*.py"))
        guess = get_close_matches(path.name, near, n=1)
        hint = f"; did you mean {path.with_name(guess[0])}?" if guess else ""
        here = f"; {path.parent} has: {', '.join(near)}" if near and not guess else ""
        raise UserError(f"there is no recipe file {path}{hint}{here}")
    if path.suffix != ".py":
        raise UserError(f"a recipe is a Python file with get_config(), and {path} is no .py file")
    names: dict[str, Any] = {"__name__": "recipe", "__file__": str(path.resolve())}
    try:
        # Not imported: that would leave bytecode beside the user's file, and may read a stale one.
        exec(compile(path.read_bytes(), str(path), "exec"), names)
        get_config = names.get("get_config")
        if not callable(get_config):
            raise UserError(f"the recipe {path} has no function get_config(arg='')")
        takes_one = bool(inspect.signature(get_config).parameters)
        if arg and not takes_one:
            raise UserError(
                f"the recipe {path} takes no argument, and {arg!r} was given; leave ':{arg}' away"
            )
        if takes_one:
            arg = arg or model or ""
        raw = plain(get_config(arg) if arg else get_config())
    except UserError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path)]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        where = f" at line {line}" if line else ""
        where += f" with the argument {arg!r}" if arg else ""
        raise UserError(
            f"the recipe {path} failed{where}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(raw, dict):
        raise UserError(
            f"get_config() of {path} must return a ConfigDict or a dict; it returned {short(raw)}"
        )
    return raw


def plain(value: Any) -> Any:
    """Dicts in place of ConfigDicts; all containers copied."""
    if isinstance(value, ml_collections.ConfigDict):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value
