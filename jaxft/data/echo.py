"""The rows of a source with all their columns, to be given back beside the answers."""

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jaxft.data.sources import JSON, PARQUET, content, locate, open_saved, separator
from jaxft.data.textfiles import csv_rows, decode, json_rows, spaced_rows
from jaxft.errors import UserError


def read_raw(
    path: str,
    *,
    split: str = "train",
    columns: int = 1,
    delimiter: str | None = None,
    quoting: bool = True,
    encoding: str = "utf-8",
    header: bool = True,
) -> list[dict[str, Any]]:
    """Each row as column -> cell, as JSON has it; columns without a name by position.

    The options are those of `sources.read`, which has read the source before and found it sound;
    `columns` are those of a file without a header whose fields end with a space.

    Raises: UserError for two columns of one name.
    """
    files, root, split = locate(path, split)
    if files is None or files.isdir(root):
        return _cells(open_saved(files, root, path, split).with_format("arrow")[:], path)
    data, extension = content(files, root, path, None)
    if extension == PARQUET:
        return _cells(pq.read_table(pa.BufferReader(data)), path)
    text = decode(data, encoding, path)
    if extension in JSON:
        return [row for _, row in json_rows(text, path)]
    mark = separator(delimiter, extension)
    if mark == " ":
        rows = [fields for _, fields in spaced_rows(text, None if header else columns, path)]
    else:
        rows = [fields for _, fields in csv_rows(text, mark, quoting, path)]
    first, body = (rows[0], rows[1:]) if header else ([""] * len(rows[0]), rows)
    names = [name.strip() or str(at) for at, name in enumerate(first)]
    _refuse_twins(names, path)
    return [dict(zip(names, fields, strict=True)) for fields in body]


def _cells(table: pa.Table, path: str) -> list[dict[str, Any]]:
    """Rows of a table; a cell that JSON has no word for, such as a date, as text."""
    _refuse_twins(table.column_names, path)
    return json.loads(json.dumps(table.to_pylist(), default=str))


def _refuse_twins(names: Sequence[str], path: str) -> None:
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(
            f"{path}: several columns are called {', '.join(map(repr, twice))}, and a row of JSON "
            "can hold one. Rename the others."
        )
