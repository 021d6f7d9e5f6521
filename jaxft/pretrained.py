"""The tensors of a checkpoint -> parameters, with nothing about any family.

A tensor's name in the file is the weight's own `hf` name, behind the family's prefix or not.
"""

import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import SingleDeviceSharding

from jaxft.errors import UserError
from jaxft.folder import Checkpoint
from jaxft.nn.weights import ROWS_BYTES, Path, Weight
from jaxft.processes import process_count, process_index
from jaxft.vocabulary import NewRows

FLOATS = ("F64", "F32", "F16", "BF16")
"""safetensors' names of the types that are read; float64 loses digits, the others none."""
COMPARED_ROWS = 4096
"""Of two tensors that must be equal, at once."""


@dataclass(frozen=True)
class Match:
    """Which tensors of a checkpoint serve which weights."""

    tensors: dict[Path, tuple[tuple[Any, str], ...]]
    """(open file, name in it) of every layer of every weight that the checkpoint has."""
    new: tuple[Weight, ...]
    """Weights the checkpoint does not have and that may be initialised."""
    unused: dict[str, str]
    """Tensors that no weight needs, with the reason why that is fine."""
    new_rows: NewRows | None = None
    """Rows over the vocabulary that the checkpoint does not have."""


def match(
    checkpoint: Checkpoint,
    weights: Mapping[Path, Weight],
    *,
    prefix: str,
    unused: Mapping[str, str],
    new: Mapping[str, str],
    may_lack_head: bool = True,
    new_head: bool = False,
    new_rows: NewRows | None = None,
) -> Match:
    """Pair weights and tensors.

    Heads (with `may_lack_head`) and names that fit `new` may be absent; names that fit `unused` may
    be left over. A tied head that the checkpoint holds too must equal the weight it is tied to, and
    one that it holds alone is that weight.

    Raises:
        UserError: any tensor is missing, extra or of another shape; all of them are named.
    """
    dotted = prefix + "."
    found: dict[str, tuple[Any, str]] = {}
    taken: dict[Path, tuple[tuple[Any, str], ...]] = {}
    fresh, problems, advice = [], [], ""
    for name, place in checkpoint.tensors.items():
        if (short := name.removeprefix(dotted)) in found:
            problems.append(f"  twice      {short}: with and without {dotted}")
        found[short] = place
    for weight in weights.values():
        if weight.tied in found and weight.hf not in found:
            found[weight.hf] = found.pop(weight.tied)
        if (new_head and weight.in_head) or _may_be_new(weight, new, found, may_lack_head):
            fresh.append(weight)
        elif wrong := list(_misfits(weight, found, new_rows)):
            problems += wrong
            if weight.in_head:
                advice = "\nmodel.new_head=true (in Python new_head=True) starts the head afresh."
        else:
            taken[weight.path] = tuple(found[name] for name in weight.hf_names)
            if weight.tied in found and not _equal(found[weight.tied], found[weight.hf]):
                problems.append(
                    f"  untied     {weight.tied} differs from {weight.hf}, which the config says "
                    "it is (tie_word_embeddings)"
                )
    left = dict(_left_over(found, weights, unused, new_head))
    extra = [name for name, why in left.items() if not why]
    problems += [f"  extra      {name}: this model has no place for it" for name in extra]
    if problems:
        listed = "\n".join(problems)
        raise UserError(f"{checkpoint.folder} does not fit the model:\n{listed}{advice}")
    return Match(taken, tuple(fresh), left, new_rows)


def _left_over(
    found: Iterable[str], weights: Mapping[Path, Weight], unused: Mapping[str, str], new_head: bool
) -> Iterator[tuple[str, str]]:
    """Tensors that no weight takes, and why that is fine; "" where it is not."""
    owners = {name: weight for weight in weights.values() for name in weight.hf_names}
    tied = {weight.tied: weight for weight in weights.values() if weight.tied}
    for name in found:
        if name in tied:
            yield name, f"tied: it equals {tied[name].hf}"
        elif name not in owners:
            yield name, next((why for rule, why in unused.items() if re.fullmatch(rule, name)), "")
        elif new_head and owners[name].in_head:
            yield name, "the old head; model.new_head is set"


def _may_be_new(
    weight: Weight, new: Mapping[str, str], found: Container[str], may_lack_head: bool
) -> bool:
    """A head, or a part that `new` names, of which the checkpoint has nothing at all."""
    part = weight.hf.rpartition(".")[0]
    there = any(f"{part}.{end}" in found for end in ("weight", "bias"))
    named = any(re.fullmatch(rule, weight.hf) for rule in new)
    return not there and ((weight.in_head and may_lack_head) or named)


def _equal(one: tuple[Any, str], other: tuple[Any, str]) -> bool:
    """Whether two tensors hold the same, compared a few rows at a time; each of several processes
    reads its share of them, and they fail together.
    """
    a, b = (file.get_slice(name) for file, name in (one, other))
    if a.get_shape() != b.get_shape():
        return False
    rows = a.get_shape()[0]
    starts = range(process_index() * COMPARED_ROWS, rows, process_count() * COMPARED_ROWS)
    # safetensors takes no slice that ends behind the tensor.
    blocks = (slice(i, min(i + COMPARED_ROWS, rows)) for i in starts)
    return all(np.array_equal(a[block], b[block]) for block in blocks)


def _misfits(
    weight: Weight, found: Mapping[str, tuple[Any, str]], new_rows: NewRows | None
) -> Iterator[str]:
    """What is wrong with the tensors that bear a weight's names."""
    if new_rows is not None:
        sizes = zip(weight.axes, weight.shape, strict=True)
        stored = tuple(new_rows.stored if axis == "vocab" else size for axis, size in sizes)
        weight = replace(weight, shape=stored)
    for name in weight.hf_names:
        if name not in found:
            yield f"  missing    {name} {list(weight.hf_shape)}"
            continue
        file, inside = found[name]
        shape, dtype = file.get_slice(inside).get_shape(), file.get_slice(inside).get_dtype()
        if dtype not in FLOATS:
            yield f"  quantised  {name} is {dtype}, not {', '.join(FLOATS)}"
        if tuple(shape) != weight.hf_shape:
            yield f"  misshaped  {name} is {shape}, expected {list(weight.hf_shape)}"


def read(
    matched: Match,
    weights: Mapping[Path, Weight],
    shardings: Mapping[Path, jax.sharding.Sharding] | None = None,
) -> dict[Path, jax.Array]:
    """The matched weights as float32 arrays; a process reads only the bytes its devices hold.

    Without shardings they are on the default device, and jit may move them.
    """
    return {
        path: _load(matched, weights[path], None if shardings is None else shardings[path])
        for path in matched.tensors
    }


def block(matched: Match, weight: Weight, span: slice) -> np.ndarray:
    """One of the `weight.blocks()`, float32."""
    index = [slice(0, n) for n in weight.shape]
    index[weight.blocks_axis] = span
    return _part(matched, weight, index)


def _load(matched: Match, weight: Weight, sharding: jax.sharding.Sharding | None) -> jax.Array:
    """Put together on the devices from blocks, so that the host holds no more than one of them."""
    shape, axis, spans = weight.shape, weight.blocks_axis, weight.blocks()
    split = sharding is not None and sharding.shard_shape(shape)[axis] != shape[axis]
    if split or len(spans) == 1:
        return _put(shape, sharding, lambda index: _part(matched, weight, index))
    value = _zeros(shape, sharding)()
    insert = _inserter(sharding, axis)
    for span in spans:

        def part(index: list[slice], first: int = span.start) -> np.ndarray:
            here = index[axis]
            index[axis] = slice(first + here.start, first + here.stop)
            return _part(matched, weight, index)

        size = (*shape[:axis], span.stop - span.start, *shape[axis + 1 :])
        # One at a time: the next is not read while this one still waits for its place.
        value = insert(value, _put(size, sharding, part), np.int32(span.start)).block_until_ready()
    return value


@cache
def _zeros(
    shape: tuple[int, ...], sharding: jax.sharding.Sharding | None
) -> Callable[[], jax.Array]:
    """A program, since `jnp.zeros` itself cannot make an array in the host's memory."""
    return jax.jit(partial(jnp.zeros, shape, jnp.float32), out_shardings=sharding)


@cache
def _inserter(sharding: jax.sharding.Sharding | None, axis: int) -> Callable[..., jax.Array]:
    """Writes a block into an array that is donated, from a given place on."""

    def insert(value: jax.Array, block: jax.Array, start: jax.Array) -> jax.Array:
        return lax.dynamic_update_slice_in_dim(value, block, start, axis)

    return jax.jit(insert, donate_argnums=0, out_shardings=sharding)


def _put(
    shape: tuple[int, ...],
    sharding: jax.sharding.Sharding | None,
    part: Callable[[list[slice]], np.ndarray],
) -> jax.Array:
    """An array whose parts are read one device after the other; what several hold is read once."""
    if sharding is None:
        return jnp.asarray(part([slice(0, n) for n in shape]))
    owners: dict[tuple[tuple[int, int], ...], list[jax.Device]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        bounds = tuple(one.indices(n)[:2] for one, n in zip(index or (), shape, strict=True))
        owners.setdefault(bounds, []).append(device)
    placed = []
    for bounds, devices in owners.items():
        values = part([slice(*ends) for ends in bounds])
        there = [SingleDeviceSharding(one, memory_kind=sharding.memory_kind) for one in devices]
        placed += jax.block_until_ready([jax.device_put(values, place) for place in there])
    return jax.make_array_from_single_device_arrays(shape, sharding, placed)


def _part(matched: Match, weight: Weight, index: Sequence[slice]) -> np.ndarray:
    """What lies at `index` of a weight, float32."""
    places = matched.tensors[weight.path]
    part = np.empty([one.stop - one.start for one in index], np.float32)
    if weight.stacked:
        for layer, place in zip(part, places[index[0]], strict=True):
            _copy(layer, place, weight, index[1:])
    elif matched.new_rows is None or "vocab" not in weight.axes:
        _copy(part, places[0], weight, index)
    else:
        axis = weight.axes.index("vocab")

        def stored(rows: slice) -> np.ndarray:
            there = (*index[:axis], rows, *index[axis + 1 :])
            return np.moveaxis(_slice(places[0], weight, there), axis, 0)

        matched.new_rows.complete(np.moveaxis(part, axis, 0), index[axis].start, stored)
    return part


def _copy(part: np.ndarray, place: tuple[Any, str], weight: Weight, index: Sequence[slice]) -> None:
    """Fills `part` from one tensor of the file, a few of the file's rows at a time."""
    axis = part.ndim - 1 if weight.transposed else 0
    step, first = max(1, ROWS_BYTES * part.shape[axis] // max(1, part.nbytes)), index[axis].start
    into = np.moveaxis(part, axis, 0)
    for i in range(0, len(into), step):
        rows = slice(first + i, min(first + i + step, index[axis].stop))
        some = _slice(place, weight, (*index[:axis], rows, *index[axis + 1 :]))
        into[i : i + step] = np.moveaxis(some, axis, 0)


def _slice(place: tuple[Any, str], weight: Weight, index: Sequence[slice]) -> np.ndarray:
    """A slice of one tensor of the file, in the weight's order of axes and the file's type."""
    file, name = place
    inside = tuple(_within(weight, index))
    tensor = file.get_slice(name)
    return tensor[inside[::-1]].T if weight.transposed else tensor[inside]


def _within(weight: Weight, index: Sequence[slice]) -> Sequence[slice]:
    """Where a block of a weight lies in the tensor it is a part of."""
    if weight.part is None:
        return index
    first = weight.part[0] * weight.shape[-1]
    return (*index[:-1], slice(first + index[-1].start, first + index[-1].stop))
