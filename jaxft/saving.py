"""Parameters -> safetensors, block by block: what is written was never on the host as a whole.

Source of the format: huggingface/safetensors 0.8, README: the header's length (8 bytes, little
endian), the header as JSON with each tensor's type, shape and place, then the tensors themselves.
The library writes it too, but only from tensors that are all in memory.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path as FilePath
from typing import Any, BinaryIO

import jax
import numpy as np
from jax import lax
from jax.experimental import multihost_utils

from jaxft.errors import UserError
from jaxft.hub import INDEX, SINGLE
from jaxft.nn.weights import ROWS_BYTES, Path, Weight

SHARD_BYTES = 5 * 10**9
NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
"""The types that are written, as safetensors calls them."""


@dataclass(frozen=True)
class Tensor:
    """A tensor of a file to be: what the header says of it, and its rows, block by block."""

    name: str
    shape: tuple[int, ...]
    blocks: Callable[[], Iterator[np.ndarray]]

    @property
    def values(self) -> np.ndarray:
        """All of it."""
        return np.concatenate(list(self.blocks()))


def to_tensors(
    params: Mapping[Path, Any], weights: Mapping[Path, Weight], *, prefix: str
) -> list[Tensor]:
    """The checkpoint's tensors of the weights, those of the base behind `prefix`."""
    fused: dict[tuple[str, ...], list[Path]] = {}
    for path, weight in weights.items():
        fused.setdefault(weight.hf_names, []).append(path)
    tensors = []
    for names, paths in fused.items():
        paths.sort(key=lambda path: weights[path].part or (0, 1))
        weight, arrays = weights[paths[0]], [params[path] for path in paths]
        for i, name in enumerate(names):
            dotted = name if weight.in_head else prefix + name
            spans = [slice(i, i + 1)] if weight.stacked else weight.blocks()
            tensors.append(Tensor(dotted, weight.hf_shape, partial(_rows, weight, arrays, spans)))
    return tensors


def _rows(weight: Weight, arrays: Sequence[Any], spans: Sequence[slice]) -> Iterator[np.ndarray]:
    """The rows of one tensor of the file, which the arrays make side by side."""
    for span in spans:
        parts = [fetch(array, weight, span) for array in arrays]
        block = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
        block = block[0] if weight.stacked else block
        yield block.T if weight.transposed else block


def fetch(array: Any, weight: Weight, span: slice) -> np.ndarray:
    """A block of a weight's array on the host; every process must ask for it, and each gets it."""
    axis, size = weight.blocks_axis, span.stop - span.start
    if not isinstance(array, jax.Array):
        return np.asarray(array[(slice(None),) * axis + (span,)])
    if size < weight.shape[axis]:
        # Not by array[...], which would compile a program for each block.
        array = lax.dynamic_slice_in_dim(array, np.int32(span.start), size, axis)
    if not array.is_fully_addressable:
        array = multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)


def write(
    folder: FilePath, tensors: Sequence[Tensor], dtype: str, *, shard_bytes: int = SHARD_BYTES
) -> None:
    """One safetensors file, or shards of at most `shard_bytes` with an index; process 0 writes.

    Those of an earlier export to the same folder are replaced.

    Raises:
        UserError: a value is not finite, or would not be in `dtype`.
    """
    shards: list[list[Tensor]] = [[]]
    size = total = 0
    for tensor in tensors:
        nbytes = _bytes(tensor, dtype)
        if shards[-1] and size + nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += nbytes
        total += nbytes
    leads = jax.process_index() == 0
    parts = [folder / f"part-{i}.safetensors" for i in range(len(shards))]
    try:
        for path, shard in zip(parts, shards, strict=True):
            # What the other processes gather with the first goes nowhere.
            _write_file(path if leads else FilePath(os.devnull), shard, dtype)
    except BaseException:
        for path in parts if leads else ():
            path.unlink(missing_ok=True)
        raise
    if not leads:
        return
    for old in (folder / INDEX, *folder.glob("model*.safetensors")):
        old.unlink(missing_ok=True)
    if len(shards) == 1:
        parts[0].rename(folder / SINGLE)
        return
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(shards):
        final = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        parts[i].rename(folder / final)
        weight_map |= {tensor.name: final for tensor in shard}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2))


def _bytes(tensor: Tensor, dtype: str) -> int:
    return prod(tensor.shape) * np.dtype(dtype).itemsize


def _write_file(path: FilePath, tensors: Sequence[Tensor], dtype: str) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        start, end = end, end + _bytes(tensor, dtype)
        place = {"shape": list(tensor.shape), "data_offsets": [start, end]}
        header[tensor.name] = {"dtype": NAMES[dtype], **place}
    said = json.dumps(header, separators=(",", ":")).encode()
    said += b" " * (-len(said) % 8)
    with path.open("wb") as file:
        file.write(len(said).to_bytes(8, "little") + said)
        for tensor in tensors:
            _write_tensor(file, tensor, dtype)


def _write_tensor(file: BinaryIO, tensor: Tensor, dtype: str) -> None:
    for block in tensor.blocks():
        step = max(1, ROWS_BYTES * len(block) // max(1, block.nbytes))
        for i in range(0, len(block), step):
            file.write(_finite(block[i : i + step], tensor.name, dtype).view(np.uint8))


def _finite(rows: np.ndarray, name: str, dtype: str) -> np.ndarray:
    """The rows in `dtype`, their values in the file's order."""
    with np.errstate(over="ignore"):
        cast = np.ascontiguousarray(rows, np.dtype(dtype))
    if not np.isfinite(cast).all():
        raise UserError(f"{name} has values that are not finite in {dtype}: not exported.")
    return cast
