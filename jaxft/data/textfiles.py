"""Bytes of delimited and JSON files -> rows with the line each one starts in."""

import codecs
import csv
import io
import json
import re
from itertools import pairwise
from typing import Any

from jaxft.errors import UserError

Rows = list[tuple[int, Any]]  # (1-based line in which the row starts, its fields or its object)


def decode(data: bytes, encoding: str, path: str) -> str:
    """The text of a file without byte order mark; a byte that does not decode is named."""
    body = data.removeprefix(codecs.BOM_UTF8)
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = body.decode(encoding)
    except LookupError:
        raise UserError(
            f"data.encoding={encoding!r} is no text encoding; some are utf-8, latin-1, utf-16."
        ) from None
    except UnicodeDecodeError as error:
        line = body.count(b"\n", 0, error.start) + 1
        offset = error.start + len(data) - len(body)
        raise UserError(
            f"{path} line {line}: byte 0x{body[error.start]:02x} at offset {offset} is not "
            f"{encoding}. Say what it is, e.g. data.encoding={'utf-16' if wide else 'latin-1'}, "
            "or save the file as UTF-8."
        ) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise UserError(
            f"{path} line {line}: a NUL byte. The file is not text, or not {encoding} (UTF-16 "
            "looks like this: data.encoding=utf-16); remove the byte or save the file as UTF-8."
        )
    text = text.removeprefix("\ufeff")
    if not text.strip():
        raise UserError(f"{path} is empty: it holds nothing but blanks.")
    return text


def csv_rows(text: str, delimiter: str, quoting: bool, path: str) -> Rows:
    """Fields of each row, all rows equally wide; blank lines are skipped."""
    reader = csv.reader(
        io.StringIO(text, ""),
        delimiter=delimiter,
        quoting=csv.QUOTE_MINIMAL if quoting else csv.QUOTE_NONE,
        strict=True,
    )
    rows: Rows = []
    start = 1
    # The default limit of 128 KiB a field would refuse long documents.
    limit = csv.field_size_limit(len(text) + 1)
    try:
        for fields in reader:
            if fields:
                rows.append((start, fields))
            start = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"{path} line {start}: a quote opens in the row starting here and is not closed as CSV "
            f"wants it ({error}, at line {reader.line_num}). If quotes in this file are plain "
            "characters: data.quoting=false; if fields end with something else than "
            f'{delimiter!r}: data.delimiter; otherwise close it, or write "" for a quote inside.'
        ) from None
    finally:
        csv.field_size_limit(limit)
    for (before, expected), (line, fields) in pairwise(rows):
        if len(fields) != len(expected):
            raise UserError(
                f"{path} line {line}: {len(fields)} fields, expected {len(expected)} as in line "
                f"{before}. A field that holds {delimiter!r} needs quotes around it; or the "
                "delimiter is another one (data.delimiter), or quotes are plain characters here "
                "(data.quoting=false)."
            )
    if delimiter == "\t":
        _refuse_swallowed_rows(rows, path)
    return rows


def _refuse_swallowed_rows(rows: Rows, path: str) -> None:
    """A stray quote can eat rows up to the next one and still be valid; tabs in every line tell."""
    for line, fields in rows:
        lines = "\t".join(fields).split("\n")
        tabs = len(fields) - 1
        if tabs and len(lines) > 1 and all(inner.count("\t") == tabs for inner in lines):
            raise UserError(
                f"{path} line {line}: a quote opens in this row and closes {len(lines) - 1} "
                "line(s) later, and each of these lines looks like a row of its own. If quotes in "
                "this file are plain characters: data.quoting=false."
            )


def spaced_rows(text: str, fields: int | None, path: str) -> Rows:
    """Lines cut at their first spaces into ``fields``, or as many as the first line has words."""
    rows: Rows = []
    for line, content in enumerate(io.StringIO(text, None), 1):
        if content.strip():
            fields = fields or len(content.split())
            rows.append((line, content.rstrip("\n").split(" ", fields - 1)))
            if len(rows[-1][1]) != fields:
                raise UserError(
                    f"{path} line {line}: {len(rows[-1][1])} fields between single spaces, "
                    f"expected {fields}. Is the delimiter another one (data.delimiter)?"
                )
    return rows


def json_rows(text: str, path: str) -> Rows:
    """Objects, one a line, or those of one list."""
    try:
        rows = _listed(text) if text.lstrip().startswith("[") else _lined(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path} line {error.lineno}: broken JSON ({error.msg} at column {error.colno}). "
            "Allowed are one object a line, or one list of objects."
        ) from None
    for line, row in rows:
        if not isinstance(row, dict):
            raise UserError(
                f'{path} line {line}: a row is an object such as {{"text": "..."}}, '
                f"found {json.dumps(row)[:40]}."
            )
    return rows


def _lined(text: str) -> Rows:
    rows: Rows = []
    for line, content in enumerate(text.split("\n"), 1):
        if content.strip():
            try:
                rows.append((line, json.loads(content)))
            except json.JSONDecodeError as error:
                error.lineno = line
                raise
    return rows


def _listed(text: str) -> Rows:
    """As `json.loads`, but an item's line is kept."""
    rows: Rows = []
    blank, decoder = re.compile(r"\s*"), json.JSONDecoder()

    def skip(at: int) -> int:
        return blank.match(text, at).end()  # type: ignore[union-attr]  # it matches nothing, too

    if not text.strip(" \t\r\n[]"):
        return rows
    at, line, counted = skip(0), 1, 0
    while not rows or text.startswith(",", at):
        start = skip(at + 1)
        line, counted = line + text.count("\n", counted, start), start
        item, end = decoder.raw_decode(text, start)
        rows.append((line, item))
        at = skip(end)
    if text[at:].rstrip() != "]":
        raise json.JSONDecodeError("expected ',' or the closing ']'", text, at)
    return rows
