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
from datasets import Dataset

from jaxft.data.columns import from_fields, from_objects, from_parquet, from_saved
from jaxft.data.textfiles import csv_rows, decode, json_rows, spaced_rows
from jaxft.errors import UserError

DELIMITERS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
JSON = (".jsonl", ".ndjson", ".json")
PARQUET = ".parquet"
KNOWN = (*DELIMITERS, *JSON, PARQUET)
PACKED = (".gz", ".bz2", ".xz")
FORMAT = ("data.delimiter", "data.quoting", "data.header", "data.encoding")
"""How text files are written: delimited ones have all of it, JSON the last."""
HUB_ID = re.compile(r"(\w[\w.-]*(?:/\w[\w.-]*)?)(?:/(\w[\w.-]*))?")


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
        return from_saved(open_saved(files, root, path, split), wanted, path)
    data, extension = content(files, root, path, KNOWN if delimiter is None else None)
    if extension == PARQUET:
        return from_parquet(data, wanted, path)
    text = decode(data, encoding, path)
    if extension in JSON:
        return from_objects(json_rows(text, path), wanted, path)
    delimiter = separator(delimiter, extension)
    if delimiter == " ":
        positions = [column for column in wanted.values() if isinstance(column, int)]
        rows = spaced_rows(text, None if header else max(positions, default=0) + 1, path)
    else:
        rows = csv_rows(text, delimiter, quoting, path)
    return from_fields(rows, wanted, header, path)


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


def several(path: str, split: str) -> str | None:
    """The split that is read of a source that has splits."""
    files, root, part = locate(path, split)
    return part if files is None or files.exists(f"{root}/dataset_dict.json") else None


def refuse_unread(given: Mapping[str, Any], paths: Sequence[str]) -> None:
    """Raises: UserError where keys of `FORMAT` are given that none of the sources reads."""
    read = {key for path in paths for key in _format(path)}
    if unread := [f"{key}={given[key]}" for key in FORMAT if key in given and key not in read]:
        raise UserError(
            f"{', '.join(unread)}: none of {', '.join(paths)} reads that. Delimited files read "
            f"{', '.join(FORMAT)}, JSON files {FORMAT[-1]} alone, Parquet files and saved data "
            "sets nothing of it. Leave it out."
        )


def _format(path: str) -> Sequence[str]:
    files, root, _ = locate(path, "")
    extension = extension_of(root)
    if files is None or files.isdir(root) or extension == PARQUET:
        return ()
    return FORMAT[-1:] if extension in JSON else FORMAT


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
