"""The rows of a text file with all their columns, to be given back beside the answers."""

from typing import Any

from jaxft.data.sources import JSON, content, locate, separator
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
    files, root, _ = locate(path, "")
    if files is None or files.isdir(root):
        return None
    data, extension = content(files, root, path, None)
    if extension == ".parquet":
        return None
    text = decode(data, encoding, path)
    if extension in JSON:
        return [dict(row) for _, row in json_rows(text, path)]
    mark = separator(delimiter, extension)
    if mark == " ":
        return None
    rows = [fields for _, fields in csv_rows(text, mark, quoting, path)]
    first = rows.pop(0) if header else range(len(rows[0]))
    names = [str(name).strip() for name in first]
    return [dict(zip(names, fields, strict=True)) for fields in rows]
