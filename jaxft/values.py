"""One value of the config: what its type allows, how a shell word is read, how both are said.

A type is what a dataclass annotation can say: bool, int, float, str, Any (JSON), Literal, list,
tuple, dict, and unions of them.
"""

import ast
import json
import operator
import sys
import types
import warnings
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any, Literal, Union, get_args, get_origin

# A whole number is a count (of steps, of rows); a float below 1 is a share of all there are.
CountOrShare = int | float

NAMES: dict[Any, str] = {
    None: "None",
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    str: "text",
    Any: "JSON",
    CountOrShare: "a whole number or a share below 1",
}
BOOLS = {"true": True, "1": True, "false": False, "0": False}
SIGNS = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}


def accept(value: Any, hint: Any, must: str = "") -> Any:
    """The value as the type `hint` stores it: 1 becomes 1.0 for a float, a tuple a list.

    Raises: ValueError saying what the type, or the range `must` of its numbers, allows.
    """
    kinds = members(hint)
    for kind in kinds:
        try:
            taken = _take(value, kind)
            break
        except ValueError:
            continue
    else:
        whole = int in kinds and isinstance(value, float) and value.is_integer()
        raise ValueError(f"must be {words(hint)}" + (f"; write {int(value)}" if whole else ""))
    if {int, float} <= set(kinds) and isinstance(taken, float) and taken >= 1:
        if not taken.is_integer():
            raise ValueError(f"must be {words(hint)}")
        if taken == 1:
            raise ValueError("could mean one or all; write 1 for one, 0.999 for nearly all")
        taken = int(taken)
    if not within(taken, must):
        raise ValueError(f"must be {must}")
    return taken


def read(text: str, hint: Any, must: str = "") -> Any:
    """The value that a word of the shell stands for, by the type it should have.

    Raises: ValueError as `accept` does.
    """
    refusals = []
    for candidate in _readings(text, hint):
        try:
            return accept(candidate, hint, must)
        except ValueError as refusal:
            refusals.append(refusal)
            if type(candidate) in [get_origin(kind) for kind in members(hint)]:
                break  # a dict that is out of range is no text that looks like one
    raise refusals[0]


def words(hint: Any) -> str:
    """A type in plain words, for messages and for the table of keys."""
    if hint in NAMES:
        return NAMES[hint]
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return ("one of " if len(arguments) > 1 else "") + ", ".join(map(str, arguments))
    if origin in (list, tuple):
        return f"a list, each {words(arguments[0])}"
    if origin is dict:
        return f"a dict of {words(arguments[0])} to {words(arguments[1])}"
    if len(members(hint)) == 1:
        raise TypeError(f"the config's schema does not know the type {hint}")
    parts = [None if member is types.NoneType else member for member in arguments]
    if {int, float} <= set(parts):
        parts = [CountOrShare, *(part for part in parts if part not in (int, float))]
    choices = [part for part in parts if get_origin(part) is Literal]
    if len(choices) > 1:
        merged = Literal[tuple(c for part in choices for c in get_args(part))]  # type: ignore
        parts = [merged, *(part for part in parts if part not in choices)]
    return " or ".join(words(part) for part in parts)


def short(value: Any) -> str:
    """A value as Python spells it, cut to what fits in a message."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def members(hint: Any) -> tuple[Any, ...]:
    """The types of a union; of any other type, itself."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def within(value: Any, must: str) -> bool:
    """Whether all numbers in the value are in a range: "> 0 and <= 1", "-1 or >= 1"; "" is any."""
    if isinstance(value, dict | list | tuple):
        inner = value.values() if isinstance(value, dict) else value
        return all(within(element, must) for element in inner)
    if not must or not isinstance(value, int | float):
        return True
    return any(
        all(_holds(value, *clause.split()) for clause in either.split(" and "))
        for either in must.split(" or ")
    )


def _holds(value: float, *clause: str) -> bool:
    *sign, bound = clause
    return SIGNS[sign[0]](value, float(bound)) if sign else value == float(bound)


def _take(value: Any, member: Any) -> Any:
    """The value as one type that is no union stores it; ValueError if the type does not hold it."""
    origin, arguments = get_origin(member), get_args(member)
    if origin in (list, tuple) and isinstance(value, list | tuple):
        return origin(accept(item, arguments[0]) for item in value)
    if origin is dict and isinstance(value, Mapping):
        named, held = arguments
        return {accept(name, named): accept(item, held) for name, item in value.items()}
    if origin is Literal and any(value == c and type(value) is type(c) for c in arguments):
        return value
    if member is Any:
        return _json(value)
    if member is float and type(value) in (int, float) and _is_finite(value):
        return float(value)
    if member is str and isinstance(value, PurePath):
        return str(value)
    if type(value) is member and member is not float:
        return value
    raise ValueError


def _json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return accept(value, dict[str, Any])
    if isinstance(value, list | tuple):
        return accept(value, list[Any])
    if value is None or isinstance(value, str | bool | int):
        return value
    return accept(value, float)


def _is_finite(value: float) -> bool:
    return -sys.float_info.max <= value <= sys.float_info.max  # also for ints too big for a float


def _readings(text: str, hint: Any) -> Iterator[Any]:
    """What a shell word could mean, the likeliest first; `accept` then chooses by the type."""
    word, kinds = text.strip(), members(hint)
    if types.NoneType in kinds and word.lower() in ("none", "null"):
        yield None
    if bool in kinds and word.lower() in BOOLS:
        yield BOOLS[word.lower()]
    literal = _literal(word)
    if literal is not None:
        yield literal
    for kind in kinds:
        if get_origin(kind) in (list, tuple):
            element = get_args(kind)[0]
            inside = word.strip("[]()").strip()
            try:
                yield [read(part, element) for part in inside.split(",")] if inside else []
            except ValueError:
                continue
        if get_origin(kind) is Literal:
            yield word
    # A tab cannot be typed into most shells, and no key wants these two characters.
    yield "\t" if text == "\\t" else text


def _literal(word: str) -> Any:
    """The JSON or Python value that the word spells, or None where it spells none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a regex in a Python string warns about its backslashes
        for spell in (json.loads, ast.literal_eval):
            try:
                return spell(word)
            except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                continue
    return None
