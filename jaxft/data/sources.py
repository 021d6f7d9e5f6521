"""Files, folders and hub ids -> a `datasets.Dataset` with the columns text, text_pair, label, line.

``line`` is the 1-based line of the file in which a row starts (the number of the row where a source
has no lines), so that every later message can point at it. Class ids that carry names (ClassLabel)
become the names: a label means the same wherever it came from.

A path is a delimited file (.csv ``,``; .tsv and .txt tab; any other extension with a delimiter
given), .jsonl .ndjson .json (an object a line, or one list of objects), .parquet, any of these
packed (.gz .bz2 .xz), a folder written by `datasets.save_to_disk`, a URL of one of these, or a hub
id ``owner/name`` (``owner/name/config`` where it has several). Folders and hub ids take a
``:split`` suffix.

One space as delimiter is not CSV: a line is cut at its first spaces only, into as many fields as
the header has names or, without a header, as the highest wanted position asks for; the last field
keeps the rest of the line (trec's ``NUM:dist How far is it ?`` at positions 0 and 1).
"""

import difflib
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any

import datasets
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, Features

from jaxft.data.textfiles import Rows, csv_rows, decode, json_rows, spaced_rows
from jaxft.errors import UserError

DELIMITERS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
JSON = (".jsonl", ".ndjson", ".json")
KNOWN = (*DELIMITERS, *JSON, ".parquet")
PACKED = (".gz", ".bz2", ".xz")
HUB_ID = re.compile(r"(\w[\w.-]*(?:/\w[\w.-]*)?)(?:/(\w[\w.-]*))?")
ROW_LIKE = re.compile(r"[-+]?\d+([.,]\d+)?|.{60,}", re.DOTALL)  # no column is called so

Chosen = Mapping[str, Any]  # canonical name -> column, by name or by position


def read(
    path: str,
    columns: Mapping[str, str | int | None],
    *,
    delimiter: str | None = None,
    quoting: bool = True,
    encoding: str = "utf-8",
    header: bool = True,
    split: str = "train",
) -> Dataset:
    """Rows of one source: the wanted canonical columns in the order asked for, then ``line``.

    ``columns`` maps a canonical name to the source's column, by name or by position from 0; None is
    not wanted. Labels keep the source's type (str in delimited files); a text may be None.

    Raises: UserError for whatever is wrong with the path, its bytes, its rows or the columns.
    """
    wanted = {name: column for name, column in columns.items() if column is not None}
    files, root, split = locate(path, split)
    if files is None or files.isdir(root):
        saved = open_saved(files, root, path, split)
        chosen = _by_name(wanted, saved.column_names, path)
        table = saved.select_columns(sorted(set(chosen.values()))).with_format("arrow")[:]
        return _from_table(table, saved.features, chosen, path)
    data, extension = content(files, root, path, KNOWN if delimiter is None else None)
    if extension == ".parquet":
        return _from_parquet(data, wanted, path)
    text = decode(data, encoding, path)
    if extension in JSON:
        return _from_objects(json_rows(text, path), wanted, path)
    delimiter = separator(delimiter, extension)
    if delimiter == " ":
        positions = [column for column in wanted.values() if isinstance(column, int)]
        rows = spaced_rows(text, None if header else max(positions, default=0) + 1, path)
    else:
        rows = csv_rows(text, delimiter, quoting, path)
    return _from_fields(rows, wanted, header, path)


def locate(path: str, split: str) -> tuple[Any, str, str]:
    """(file system, path on it, split) of what exists, or (None, hub id, split).

    Raises: UserError where nothing exists and the path cannot be a hub id.
    """
    suffixed = re.fullmatch(r"(.+?):([\w.]+)", path)
    for name, part in [(path, split), *([suffixed.groups()] if suffixed else [])]:
        with opening(path):
            files, root = fsspec.core.url_to_fs(name)
            if files.exists(root):
                return files, root, part
    with opening(path):
        near = _near(files, root)
    is_file = extension_of(name) in KNOWN or not HUB_ID.fullmatch(name)
    if is_file or (near and "/" in name):  # a single word may be a hub id all the same
        found = f"Close to it there: {', '.join(near)}." if near else "Nothing there is called so."
        raise UserError(f"{name}: no such file or folder. {found}")
    return None, name, part


def _near(files: Any, root: str) -> list[str]:
    folder, _, last = root.rpartition("/")
    there = files.ls(folder, detail=False) if files.isdir(folder) else []
    return difflib.get_close_matches(last, [entry.rpartition("/")[2] for entry in there])


def extension_of(name: str) -> str:
    """Of a file, in lower case: `.jsonl` of both `a.jsonl` and `a.jsonl.gz`."""
    file = PurePosixPath(name.lower())
    return (PurePosixPath(file.stem) if file.suffix in PACKED else file).suffix


def content(files: Any, root: str, path: str, known: Sequence[str] | None) -> tuple[bytes, str]:
    """Bytes of a file, unpacked, and its extension, which is one of those `known` unless None.

    Raises: UserError for another extension, and for a file that cannot be read or is empty.
    """
    extension = extension_of(root)
    if known and extension not in known:
        raise UserError(
            f"{path}: unknown extension {extension or '(none)'}. Known are {' '.join(known)}; "
            'another text file needs data.delimiter, e.g. "," or "\\t" or " ".'
        )
    with opening(path), files.open(root, "rb", compression="infer") as handle:
        data = handle.read()
    if not data.strip():
        raise UserError(f"{path} is empty.")
    return data, extension


def separator(delimiter: str | None, extension: str) -> str:
    """The character between fields: the one given (``\\t`` is a tab), or the extension's."""
    mark = (delimiter or DELIMITERS[extension]).replace("\\t", "\t")
    if len(mark) != 1 or mark in '\r\n"':
        raise UserError(f"data.delimiter={mark!r}: one character is allowed, e.g. , ; or \\t.")
    return mark


@contextmanager
def opening(path: str) -> Iterator[None]:
    """Turns what file systems raise (each cloud has its own exceptions) into a UserError."""
    try:
        yield
    except Exception as error:
        raise UserError(f"{path} cannot be opened: {type(error).__name__}: {error}") from error


def open_saved(files: Any, root: str, path: str, split: str) -> Dataset:
    """One split of a folder of save_to_disk or, where the file system is None, of a hub id."""
    if files is None:
        return _from_hub(root, split)
    if not any(files.exists(f"{root}/{mark}") for mark in ("state.json", "dataset_dict.json")):
        inside = sorted(entry.rpartition("/")[2] for entry in files.ls(root, detail=False))
        raise UserError(
            f"{path} is a folder, but not one written by datasets.save_to_disk. "
            f"Give one of its files: {', '.join(inside[:10]) or '(there are none)'}."
        )
    try:
        with quiet():
            saved = datasets.load_from_disk(files.unstrip_protocol(root))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} is a damaged data set folder; save it again. {error}") from error
    if isinstance(saved, Dataset):
        return saved
    if split not in saved:
        raise UserError(f"{path} has no split {split!r}; it has {', '.join(saved)}.")
    return saved[split]


def _from_hub(hub_id: str, split: str) -> Dataset:
    owner_name, config = HUB_ID.fullmatch(hub_id).groups()  # type: ignore[union-attr]
    near = _near(*fsspec.core.url_to_fs(hub_id))
    try:
        with quiet():
            return datasets.load_dataset(owner_name, config, split=split)
    except Exception as error:  # hub, network, parquet and script errors share no base class
        raise UserError(
            f"{hub_id} is no file or folder here{f' (did you mean {near[0]}?)' if near else ''}, "
            f"and the hub did not give its split {split!r}: {error}\n"
            "Check the id (owner/name or owner/name/config, then :split). Without network, run "
            "datasets.load_dataset(...).save_to_disk(folder) on a machine that has one and give "
            "that folder; with HF_HUB_OFFLINE=1 only the local hub cache is asked."
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps the progress bars and log lines of datasets away for as long as it is open."""
    level, bars = datasets.logging.get_verbosity(), not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if bars:
            datasets.enable_progress_bars()


def _positions(wanted: Chosen, names: Sequence[str] | None, width: int, path: str, hint: str = ""):
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


def _by_name(wanted: Chosen, names: Sequence[str], path: str) -> dict[str, str]:
    return {key: names[at] for key, at in _positions(wanted, names, len(names), path).items()}


def _from_fields(rows: Rows, wanted: Chosen, header: bool, path: str) -> Dataset:
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
    return _dataset(values, [line for line, _ in body])


def _from_objects(rows: Rows, wanted: Chosen, path: str) -> Dataset:
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
    lines = [line for line, _ in rows]
    try:
        return _dataset(values, lines)
    except UnicodeEncodeError as error:
        raise UserError(f"{path}: half of a surrogate pair in {error.object[:40]!r}.") from None
    except (pa.ArrowException, OverflowError) as error:
        kinds = {type(row[chosen["label"]]).__name__: line for line, row in rows}
        raise UserError(
            f"{path}: labels ({chosen['label']!r}) are all of one type, found "
            f"{', '.join(f'{kind} (line {line})' for kind, line in kinds.items())}. {error}"
        ) from None


def _dataset(values: Mapping[str, list], lines: Sequence[int]) -> Dataset:
    kinds = {name: None if name == "label" else pa.string() for name in values}
    arrays = {name: pa.array(column, kinds[name]) for name, column in values.items()}
    return Dataset(pa.table({**arrays, "line": pa.array(lines, pa.int64())}))


def _from_parquet(data: bytes, wanted: Chosen, path: str) -> Dataset:
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        chosen = _by_name(wanted, file.schema_arrow.names, path)
        table = file.read(columns=sorted(set(chosen.values())))
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is not a whole Parquet file: {error}") from None
    plain = [  # pandas categories are dictionaries, which datasets does not know
        column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
        for column in table.columns
    ]
    table = pa.table(plain, names=table.column_names, metadata=table.schema.metadata)
    return _from_table(table, Features.from_arrow_schema(table.schema), chosen, path)


def _from_table(table: pa.Table, features: Features, chosen: Chosen, path: str) -> Dataset:
    if not table.num_rows:
        raise UserError(f"{path}: no rows.")
    values = {}
    for name, column in chosen.items():
        kind, values[name] = features[column], table[column]
        named = getattr(kind, "feature", kind)  # of a list's items, or itself
        if name != "label" and getattr(kind, "dtype", "") not in ("string", "large_string"):
            raise UserError(f"{path}: column {column!r} is text, found {kind}.")
        if name == "label" and isinstance(named, ClassLabel):
            values[name] = pa.array(_named(table[column].to_pylist(), named.names))
    line = pa.array(range(1, table.num_rows + 1), pa.int64())
    return Dataset(pa.table({**values, "line": line}))


def _named(value: Any, names: Sequence[str]) -> Any:
    """Class ids, in lists of any depth, by their names; the hub's -1 for "not told" is None."""
    if isinstance(value, list):
        return [_named(item, names) for item in value]
    return None if value is None or value < 0 else names[value]
