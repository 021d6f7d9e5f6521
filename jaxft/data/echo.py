"""The rows of a text file with all their columns, to be given back beside the answers."""

from pathlib import PurePosixPath
from typing import Any

import fsspec

from jaxft.data.sources import DELIMITERS, JSON
from jaxft.data.textfiles import csv_rows, decode, json_rows


def read_raw(
    path: str,
    *,
    delimiter: str | None = None,
    quoting: bool = True,
    encoding: str = "utf-8",
    header: bool = True,
) -> list[dict[str, Any]] | None:
    """Each row as column -> cell, columns without a name by position; None for other kinds of
    sources.

    The options are those of `sources.read`, which has read the file before and found it sound.
    """
    kind = PurePosixPath(path).suffix.lower()
    mark = (delimiter or DELIMITERS.get(kind, "")).replace("\\t", "\t")
    if kind not in JSON and (kind not in DELIMITERS or mark == " "):
        return None
    with fsspec.open(path, "rb") as file:
        text = decode(file.read(), encoding, path)
    if kind in JSON:
        return [dict(row) for _, row in json_rows(text, path)]
    rows = [fields for _, fields in csv_rows(text, mark, quoting, path)]
    names = [name.strip() for name in rows[0]] if header else list(map(str, range(len(rows[0]))))
    return [dict(zip(names, fields, strict=True)) for fields in rows[1 if header else 0 :]]
