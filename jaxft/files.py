"""Files of a workdir, which may be a URL (gs://, s3://, memory://).

Everything goes through fsspec, which epath itself uses for object stores and which, unlike epath,
knows memory:// too. A file is replaced whole: written aside and renamed on a disk, while an object
store puts a whole object or nothing.
"""

import io
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from secrets import token_hex
from typing import Any, BinaryIO

import fsspec
import numpy as np
from fsspec.implementations.local import LocalFileSystem

from jaxft.errors import UserError

PathLike = str | os.PathLike[str]

REMOTE_FLUSH_S = 60.0
GOOGLE = ("gs://", "gcs://")
"""What the `gcs` extra is for."""


class Appender:
    """A file that grows.

    On a disk it is appended to and safe from a kill after every write. An object store cannot
    append: there the whole file is kept in memory, and put again once every `REMOTE_FLUSH_S` and at
    `flush`.
    """

    def __init__(self, path: PathLike, start: bytes = b"") -> None:
        write_file(path, start)
        self._path = path
        fs, where = locate(path)
        self._file: BinaryIO | None = None
        if isinstance(fs, LocalFileSystem):
            self._file = open(where, "ab", buffering=0)  # noqa: SIM115
        self._kept = bytearray(b"" if self._file else start)
        self._put_size, self._put_time = len(self._kept), time.monotonic()

    def write(self, data: bytes) -> None:
        """Appends `data`, or nothing of it. Raises: OSError."""
        if self._file:
            whole, rest = os.fstat(self._file.fileno()).st_size, memoryview(data)
            try:
                while rest:
                    rest = rest[self._file.write(rest) :]
            except OSError:  # a full disk: half a record would hide those that come after it
                self._file.truncate(whole)
                raise
        else:
            self._kept += data
            if time.monotonic() - self._put_time > REMOTE_FLUSH_S:
                self.flush()

    def flush(self) -> None:
        if len(self._kept) > self._put_size:
            write_file(self._path, bytes(self._kept))
            self._put_size = len(self._kept)
        self._put_time = time.monotonic()

    def close(self) -> None:
        self.flush()
        if self._file:
            self._file.close()


def locate(path: PathLike) -> tuple[Any, str]:
    """The file system of a path or URL, and the path in it. Raises: UserError."""
    try:
        fs, where = fsspec.core.url_to_fs(os.fspath(path))
    except ImportError as error:
        extra = " (pip install 'jaxft[gcs]')" if os.fspath(path).startswith(GOOGLE) else ""
        raise UserError(f"cannot use {path}: {error}{extra}") from error
    except ValueError as error:  # no such protocol
        raise UserError(f"cannot use {path}: {error}") from error
    return fs, where


def join(folder: PathLike, name: str) -> str:
    return f"{os.fspath(folder).rstrip('/')}/{name}"


def read_file(path: PathLike) -> bytes | None:
    """The content of a file, None where there is none."""
    fs, where = locate(path)
    try:
        content: bytes = fs.cat_file(where)
        return content
    except FileNotFoundError:
        return None


@contextmanager
def replacing(path: PathLike) -> Iterator[BinaryIO]:
    """A file to write in place of another, as a whole: whoever reads that one, whenever, finds the
    old content or the new, and the old where the writing fails. What a link leads to is replaced;
    a pipe or a device is no file, and is written to.
    """
    fs, where = locate(path)
    if not isinstance(fs, LocalFileSystem):
        with io.BytesIO() as kept:
            yield kept
            fs.pipe_file(where, kept.getvalue())
        return
    if os.path.exists(where) and not os.path.isfile(where):
        with open(where, "wb") as special:
            yield special
        return
    folder, name = os.path.split(os.path.realpath(where))
    os.makedirs(folder, exist_ok=True)
    # Nobody else's name, nor one like the file's own: TensorBoard picks up what holds "tfevents".
    aside = os.path.join(folder, f".jaxft-{token_hex(8)}.aside")
    try:
        with open(aside, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, os.path.join(folder, name))
    finally:
        with suppress(FileNotFoundError):
            os.remove(aside)


def write_file(path: PathLike, data: bytes) -> None:
    """Replaces a file; see `replacing`."""
    with replacing(path) as file:
        file.write(data)


def write_json(path: PathLike, obj: Any) -> None:
    """Replaces a file by strict, indented JSON (see `dumps`)."""
    write_file(path, (dumps(obj, indent=2) + "\n").encode())


def dumps(obj: Any, indent: int | None = None) -> str:
    """Strict JSON; numpy values become plain ones, non-finite numbers "NaN" and "Infinity"."""
    return json.dumps(_plain(obj), indent=indent, allow_nan=False, ensure_ascii=False)


def numbers(obj: Any) -> Any:
    """What was read of a JSON file by `dumps`, with its non-finite numbers."""
    if isinstance(obj, dict):
        return {key: numbers(value) for key, value in obj.items()}
    if isinstance(obj, list):
        return [numbers(value) for value in obj]
    return float(obj) if obj in ("NaN", "Infinity", "-Infinity") else obj


def _plain(obj: Any) -> Any:
    if isinstance(obj, Mapping):
        return {str(key): _plain(value) for key, value in obj.items()}
    if isinstance(obj, list | tuple):
        return [_plain(value) for value in obj]
    if isinstance(obj, np.ndarray | np.generic):
        return _plain(obj.tolist())
    if isinstance(obj, float) and not math.isfinite(obj):
        return "NaN" if math.isnan(obj) else "Infinity" if obj > 0 else "-Infinity"
    return os.fspath(obj) if isinstance(obj, os.PathLike) else obj
