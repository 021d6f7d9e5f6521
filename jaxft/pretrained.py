"""Hugging Face folders <-> parameters: config.json, safetensors and nothing about any family.

A tensor's name in the file is the weight's own `hf` name, behind the family's prefix or not.
"""

import json
import re
from collections.abc import Container, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path as FilePath
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxft.errors import UserError
from jaxft.hub import INDEX, SINGLE
from jaxft.nn.weights import Path, Weight

SHARD_BYTES = 5 * 10**9
FLOATS = ("F64", "F32", "F16", "BF16")
"""safetensors' names of the types that are read; float64 loses digits, the others none."""
_OLD_NAMES = ((re.compile(r"\.gamma$"), ".weight"), (re.compile(r"\.beta$"), ".bias"))


@dataclass(frozen=True)
class Checkpoint:
    """A folder with `config.json` and safetensors; tensors are read one slice at a time.

    Raises:
        UserError: no config, no safetensors (a pickle is refused), or a file that cannot be read.
    """

    folder: FilePath
    _open: ExitStack = field(default_factory=ExitStack, repr=False)

    @cached_property
    def config(self) -> dict[str, Any]:
        path, adapter = self.folder / "config.json", self.folder / "adapter_config.json"
        if adapter.exists():
            base = _read_json(adapter).get("base_model_name_or_path") or "its base model"
            raise UserError(
                f"{self.folder} holds an adapter of {base}, and full weights are needed. Merge it "
                "first: peft's AutoPeftModelForCausalLM.from_pretrained(...).merge_and_unload(), "
                "then save_pretrained."
            )
        if not path.exists():
            raise UserError(
                f"{self.folder} has no config.json: is it the folder of a transformers model?"
            )
        config = _read_json(path)
        if not isinstance(config.get("model_type"), str):
            raise UserError(f"{path} has no model_type, so its family is unknown.")
        return config

    @cached_property
    def tensors(self) -> dict[str, tuple[Any, str]]:
        """Canonical name -> (open file, name in the file)."""
        found: dict[str, tuple[Any, str]] = {}
        for path in self.files:
            try:
                file = self._open.enter_context(safe_open(path, framework="numpy"))
            except (SafetensorError, OSError) as error:
                raise UserError(
                    f"{path} is truncated or not a safetensors file ({error}). Fetch it again."
                ) from error
            for name in file.keys():  # noqa: SIM118 -- safe_open is no mapping
                if (now := canonical(name)) in found:
                    raise UserError(f"{path}: {name} is there twice, as {found[now][1]} too.")
                found[now] = (file, name)
        return found

    @cached_property
    def files(self) -> list[FilePath]:
        """The safetensors files: `model.safetensors` before the shards, as in transformers."""
        single, index = self.folder / SINGLE, self.folder / INDEX
        if single.exists():
            return [single]
        if index.exists():
            places = _read_json(index).get("weight_map")
            if not isinstance(places, dict):
                raise UserError(f"{index} has no weight_map. Fetch it again.")
            names = sorted(set(places.values()))
            missing = [name for name in names if not (self.folder / name).exists()]
            if missing:
                listed = ", ".join(missing)
                raise UserError(f"{index} lists files that are not there: {listed}. Fetch them.")
            return [self.folder / name for name in names]
        pickles = [p.name for p in self.folder.iterdir() if p.suffix in (".bin", ".pt", ".pth")]
        if pickles:
            raise UserError(
                f"{self.folder} has only a pickle ({pickles[0]}), which can run code when opened, "
                "so it is refused.\nWhere you trust it, load it with transformers and "
                "`save_pretrained` it, which writes safetensors."
            )
        raise UserError(
            f"{self.folder} has no weights: no {SINGLE} and no {INDEX}. "
            "Pickles (pytorch_model.bin) are neither read nor fetched."
        )


def canonical(name: str) -> str:
    """A tensor's name as transformers spells it today."""
    for pattern, new in _OLD_NAMES:
        name = pattern.sub(new, name)
    return name


def _read_json(path: FilePath) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:  # not JSON, not UTF-8, not readable
        raise UserError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object but {type(content).__name__}.")
    return content


@dataclass(frozen=True)
class Match:
    """Which tensors of a checkpoint serve which weights."""

    tensors: dict[Path, tuple[tuple[Any, str], ...]]
    """(open file, name in it) of every layer of every weight that the checkpoint has."""
    new: tuple[Weight, ...]
    """Weights the checkpoint does not have and that may be initialised."""
    unused: dict[str, str]
    """Tensors that no weight needs, with the reason why that is fine."""


def match(
    checkpoint: Checkpoint,
    weights: Mapping[Path, Weight],
    *,
    prefix: str,
    unused: Mapping[str, str],
    new: Mapping[str, str],
    may_lack_head: bool = True,
    new_head: bool = False,
) -> Match:
    """Pair weights and tensors.

    Heads (with `may_lack_head`) and names that fit `new` may be absent; names that fit `unused` may
    be left over. A tied head that the checkpoint holds too must equal the weight it is tied to.

    Raises:
        UserError: any tensor is missing, extra or of another shape; all of them are named.
    """
    dotted = prefix + "."
    found: dict[str, tuple[Any, str]] = {}
    taken: dict[Path, tuple[tuple[Any, str], ...]] = {}
    fresh, left, problems, advice = [], {}, [], ""
    for name, place in checkpoint.tensors.items():
        if (short := name.removeprefix(dotted)) in found:
            problems.append(f"  twice      {short}: with and without {dotted}")
        found[short] = place
    for weight in weights.values():
        if (new_head and weight.in_head) or _may_be_new(weight, new, found, may_lack_head):
            fresh.append(weight)
        elif wrong := list(_misfits(weight, found)):
            problems += wrong
            advice = "\nmodel.new_head=true starts the head afresh." if weight.in_head else advice
        else:
            taken[weight.path] = tuple(found[name] for name in weight.hf_names)
            if weight.tied in found and not _equal(found[weight.tied], found[weight.hf]):
                problems.append(
                    f"  untied     {weight.tied} differs from {weight.hf}, which the config says "
                    "it is (tie_word_embeddings)"
                )
    owners = {name: weight for weight in weights.values() for name in weight.hf_names}
    tied = {weight.tied: weight for weight in weights.values() if weight.tied}
    for name in found:
        if name in tied:
            left[name] = f"tied: it equals {tied[name].hf}"
        elif name in owners:
            if new_head and owners[name].in_head:
                left[name] = "the old head; model.new_head is set"
        elif why := next((why for rule, why in unused.items() if re.fullmatch(rule, name)), None):
            left[name] = why
        else:
            problems.append(f"  extra      {name}: this model has no place for it")
    if problems:
        listed = "\n".join(problems)
        raise UserError(f"{checkpoint.folder} does not fit the model:\n{listed}{advice}")
    return Match(taken, tuple(fresh), left)


def _may_be_new(
    weight: Weight, new: Mapping[str, str], found: Container[str], may_lack_head: bool
) -> bool:
    """A head, or a part that `new` names, of which the checkpoint has nothing at all."""
    part = weight.hf.rpartition(".")[0]
    there = any(f"{part}.{end}" in found for end in ("weight", "bias"))
    named = any(re.fullmatch(rule, weight.hf) for rule in new)
    return not there and ((weight.in_head and may_lack_head) or named)


def _equal(one: tuple[Any, str], other: tuple[Any, str]) -> bool:
    """Whether two tensors hold the same, compared a few rows at a time."""
    a, b = (file.get_slice(name) for file, name in (one, other))
    if a.get_shape() != b.get_shape():
        return False
    rows, step = a.get_shape()[0], 4096
    # safetensors takes no slice that ends behind the tensor.
    blocks = (slice(i, min(i + step, rows)) for i in range(0, rows, step))
    return all(np.array_equal(a[block], b[block]) for block in blocks)


def _misfits(weight: Weight, found: Mapping[str, tuple[Any, str]]) -> Iterator[str]:
    """What is wrong with the tensors that bear a weight's names."""
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

    def load(weight: Weight) -> jax.Array:
        places = matched.tensors[weight.path]

        def part(index: Any) -> np.ndarray:
            if not weight.stacked:
                return _slice(places[0], _within(weight, index), weight.transposed)
            inner = _within(weight, index[1:])
            return np.stack([_slice(place, inner, weight.transposed) for place in places[index[0]]])

        if shardings is None:
            return jnp.asarray(part((slice(None),) * len(weight.shape)))
        return jax.make_array_from_callback(weight.shape, shardings[weight.path], part)

    return {path: load(weights[path]) for path in matched.tensors}


def _within(weight: Weight, index: tuple[slice, ...]) -> tuple[slice, ...]:
    """Where a block of a weight lies in the tensor it is a part of."""
    if weight.part is None:
        return index
    size = weight.shape[-1]
    start, stop, _ = index[-1].indices(size)
    first = weight.part[0] * size
    return (*index[:-1], slice(first + start, first + stop))


def _slice(place: tuple[Any, str], index: tuple[slice, ...], transposed: bool) -> np.ndarray:
    file, name = place
    tensor = file.get_slice(name)
    block = tensor[index[::-1] if transposed else index] if index else tensor[:]
    block = np.asarray(block, np.float32)
    return block.T if transposed else block


def to_tensors(
    params: Mapping[Path, Any], weights: Mapping[Path, Weight], *, prefix: str, dtype: str
) -> Iterator[tuple[str, np.ndarray]]:
    """Tensors under their checkpoint names, one at a time; those of the base behind `prefix`."""
    fused: dict[tuple[str, ...], list[Path]] = {}
    for path, weight in weights.items():
        fused.setdefault(weight.hf_names, []).append(path)
    for names, paths in fused.items():
        paths.sort(key=lambda path: weights[path].part or (0, 1))
        weight = weights[paths[0]]
        for i, name in enumerate(names):
            parts = [np.asarray(params[p][i] if weight.stacked else params[p]) for p in paths]
            tensor = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
            tensor = tensor.T if weight.transposed else tensor
            dotted = name if weight.in_head else prefix + name
            yield dotted, np.ascontiguousarray(tensor.astype(np.dtype(dtype)))


def write(
    folder: FilePath, tensors: Iterator[tuple[str, np.ndarray]], *, shard_bytes: int = SHARD_BYTES
) -> None:
    """One safetensors file, or shards of at most `shard_bytes` with an index.

    Those of an earlier export to the same folder are replaced.
    """
    shards: list[list[str]] = []
    shard: dict[str, np.ndarray] = {}
    size = total = 0

    def flush() -> None:
        save_file(shard, folder / f"part-{len(shards)}.safetensors", metadata={"format": "pt"})
        shards.append(list(shard))
        shard.clear()

    for name, tensor in tensors:
        if shard and size + tensor.nbytes > shard_bytes:
            flush()
            size = 0
        shard[name] = tensor
        size += tensor.nbytes
        total += tensor.nbytes
    flush()
    for old in (folder / INDEX, *folder.glob("model*.safetensors")):
        old.unlink(missing_ok=True)
    if len(shards) == 1:
        (folder / "part-0.safetensors").rename(folder / SINGLE)
        return
    weight_map: dict[str, str] = {}
    for i, names in enumerate(shards):
        final = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"part-{i}.safetensors").rename(folder / final)
        weight_map |= dict.fromkeys(names, final)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2))
