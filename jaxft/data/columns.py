"""The columns that are wanted of what a source holds -> a `datasets.Dataset` of them and ``line``.

Wanted are canonical names (text, text_pair, label), each with the source's column, by name or by
position.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, Features

from jaxft.data.textfiles import Rows
from jaxft.errors import UserError

ROW_LIKE = re.compile(r"[-+]?\d+([.,]\d+)?|.{60,}", re.DOTALL)  # no column is called so

Wanted = Mapping[str, str | int]


def from_fields(rows: Rows, wanted: Wanted, header: bool, path: str) -> Dataset:
    """Of the rows of a delimited file."""
    (line, first), width = rows[0], len(rows[0][1])
    names = [cell.strip() for cell in first] if header else None
    hint = "" if header else f" Line {line} is: {', '.join(cell[:40] for cell in first)}."
    if not header and any(column in first for column in wanted.values()):
        hint += " It looks like a header: data.header=true."
    elif header and any(ROW_LIKE.fullmatch(cell.strip()) for cell in first):
        hint = f" Line {line} looks like a row: data.header=false, and columns by position."
    elif width == 1 and (other := [mark for mark in ",;\t|" if mark in first[0]]):
        hint = f" Is the delimiter another one, e.g. data.delimiter={other[0]!r}?"
    at = _positions(wanted, names, width, path, hint)
    body = rows[1:] if header else rows
    if not body:
        raise UserError(f"{path}: no rows under the header in line {line}.{hint}")
    values = {name: [fields[i] for _, fields in body] for name, i in at.items()}
    if header and isinstance(wanted.get("label"), int):
        # Columns by position work without a header, so that a forgotten header=false would eat a
        # row. pandas writes the header 0, 1, ..., which is one.
        label = first[at["label"]]
        if label in set(values["label"]) and names != [str(i) for i in range(width)]:
            raise UserError(
                f"{path}: line {line} was taken as the header, but its label {label!r} is the "
                "label of other rows too. If it is a row: data.header=false."
            )
    return dataset(values, [line for line, _ in body], path)


def from_objects(rows: Rows, wanted: Wanted, path: str) -> Dataset:
    """Of JSON objects."""
    if not rows:
        raise UserError(f"{path}: no rows.")
    chosen = _by_name(wanted, list(rows[0][1]), f"{path} line {rows[0][0]}")
    for line, row in rows:
        if not all(column in row for column in chosen.values()):
            _by_name(chosen, list(row), f"{path} line {line}")
        for name in chosen.keys() - {"label"}:
            if not isinstance(value := row[chosen[name]], str | None):
                raise UserError(
                    f"{path} line {line}: {chosen[name]!r} is text (a string or null), found "
                    f"{str(value)[:40]!r}, a {type(value).__name__}."
                )
    values = {name: [row[column] for _, row in rows] for name, column in chosen.items()}
    try:
        return dataset(values, [line for line, _ in rows], path)
    except (pa.ArrowException, OverflowError) as error:
        kinds = {type(row[chosen["label"]]).__name__: line for line, row in rows}
        raise UserError(
            f"{path}: labels ({chosen['label']!r}) are all of one type, found "
            f"{', '.join(f'{kind} (line {line})' for kind, line in kinds.items())}. {error}"
        ) from None


def from_saved(saved: Dataset, wanted: Wanted, path: str) -> Dataset:
    """Of a data set that `datasets` keeps."""
    chosen = _by_name(wanted, saved.column_names, path)
    table = saved.select_columns(sorted(set(chosen.values()))).with_format("arrow")[:]
    return _from_table(table, saved.features, chosen, path)


def from_parquet(data: bytes, wanted: Wanted, path: str) -> Dataset:
    """Of the bytes of a Parquet file."""
    with parquet(data, path) as file:
        chosen = _by_name(wanted, file.schema_arrow.names, path)
        table = file.read(columns=sorted(set(chosen.values())))
    plain = [  # pandas categories are dictionaries, which datasets does not know
        column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
        for column in table.columns
    ]
    table = pa.table(plain, names=table.column_names, metadata=table.schema.metadata)
    return _from_table(table, Features.from_arrow_schema(table.schema), chosen, path)


@contextmanager
def parquet(data: bytes, path: str) -> Iterator[pq.ParquetFile]:
    """The bytes of a file, to be read from. Raises: UserError where they are broken."""
    try:
        yield pq.ParquetFile(pa.BufferReader(data))
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is not a whole Parquet file: {error}") from None


def objects(table: pa.Table) -> Rows:
    """Rows with their numbers, without nulls inside their cells: Arrow gives all objects of a
    column the same keys, so that a tool call has every other one's arguments, as nulls.
    """
    return list(enumerate(map(_without_nulls, table.to_pylist()), 1))


def _without_nulls(cell: Any) -> Any:
    if isinstance(cell, dict):
        return {name: _without_nulls(part) for name, part in cell.items() if part is not None}
    return [_without_nulls(part) for part in cell] if isinstance(cell, list) else cell


def dataset(values: Mapping[str, list], lines: Sequence[int], path: str) -> Dataset:
    """Columns, all but the label of texts, and ``line``.

    Raises: UserError for a text that is no Unicode.
    """
    kinds = {name: None if name == "label" else pa.string() for name in values}
    try:
        arrays = {name: pa.array(column, kinds[name]) for name, column in values.items()}
    except UnicodeEncodeError as error:
        raise UserError(f"{path}: half of a surrogate pair in {error.object[:40]!r}.") from None
    return Dataset(pa.table({**arrays, "line": pa.array(lines, pa.int64())}))


def _positions(wanted: Wanted, names: Sequence[str] | None, width: int, path: str, hint: str = ""):
    """Canonical name -> position; all that is wrong with the columns in one message."""
    found, wrong = {}, []
    for name, column in wanted.items():
        key = f"data.{name}_column={column}"
        if isinstance(column, int):
            found[name] = column
            if not 0 <= column < width:
                wrong.append(f"{key}: positions are 0 to {width - 1}")
        elif names is None:
            wrong.append(f"{key}: without a header a column is a position from 0 to {width - 1}")
        elif (times := list(names).count(column)) != 1:
            wrong.append(f"{key}: {f'{times} columns are' if times else 'no column is'} called so")
        else:
            found[name] = list(names).index(column)
    if wrong:
        there = f" The columns there: {', '.join(map(repr, names))}." if names else ""
        raise UserError(f"{path}: {'; '.join(wrong)}.{there}{hint}")
    return found


def _by_name(wanted: Wanted, names: Sequence[str], path: str) -> dict[str, str]:
    return {key: names[at] for key, at in _positions(wanted, names, len(names), path).items()}


def _from_table(
    table: pa.Table, features: Features, chosen: Mapping[str, str], path: str
) -> Dataset:
    if not table.num_rows:
        raise UserError(f"{path}: no rows.")
    values = {}
    for name, column in chosen.items():
        kind, values[name] = features[column], table[column]
        named = getattr(kind, "feature", kind)  # of a list's items, or itself
        if name != "label" and getattr(kind, "dtype", "") not in ("string", "large_string"):
            raise UserError(f"{path}: column {column!r} is text, found {kind}.")
        if name != "label":
            values[name] = values[name].cast(pa.string())
        elif isinstance(named, ClassLabel):
            values[name] = pa.array(_named(table[column].to_pylist(), named.names))
    line = pa.array(range(1, table.num_rows + 1), pa.int64())
    return Dataset(pa.table({**values, "line": line}))


def _named(value: Any, names: Sequence[str]) -> Any:
    """Class ids, in lists of any depth, by their names; the hub's -1 for "not told" is None."""
    if isinstance(value, list):
        return [_named(item, names) for item in value]
    return None if value is None or value < 0 else names[value]
