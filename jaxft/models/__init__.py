"""Model families, found by the `model_type` of a checkpoint's config.json: one file each.

A family's module has `Model` (an `nnx.Module`), `Dims`, `PREFIX`, `ARCHITECTURES`,
`HARMLESS_FIELDS`, `UNUSED_TENSORS`, `NEW_TENSORS` and `DROPOUT_FIELDS`; read `bert.py` first.
"""

import dataclasses
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path as FilePath
from pkgutil import iter_modules
from types import ModuleType
from typing import Any

import jax
import numpy as np
from flax import nnx

from jaxft import hub, pretrained, saving
from jaxft.errors import UserError
from jaxft.nn.fields import read_dims
from jaxft.nn.layers import Compute
from jaxft.nn.weights import Path, Tree, Weight, flatten, unflatten, walk
from jaxft.vocabulary import NewRows


def family(config: Mapping[str, Any]) -> ModuleType:
    """The module of the family that `config["model_type"]` names.

    Raises:
        UserError: there is none, with the list of those there are.
    """
    wanted = config["model_type"]
    known = sorted(module.name.replace("_", "-") for module in iter_modules(__path__))
    if wanted not in known:
        raise UserError(f"model_type {wanted!r} is not supported; there is {', '.join(known)}.")
    return import_module(f"{__name__}.{wanted.replace('-', '_')}")


def dims_of(config: Mapping[str, Any]) -> Any:
    """The `Dims` of a `config.json`'s family.

    Raises:
        UserError: a family that is not there, or a field that is not understood.
    """
    module = family(config)
    return read_dims(module.Dims, config, module.HARMLESS_FIELDS)


@dataclass(frozen=True)
class Blueprint:
    """A model that is described but not allocated: its config, its modules and its weights."""

    config: dict[str, Any]
    module: ModuleType
    dims: Any
    """The family's `Dims`."""
    output: str | None
    compute: Compute
    make: Callable[[Compute, jax.Array], nnx.Module]
    """A random model from a key; traced, never run whole when a checkpoint has the weights."""
    abstract: nnx.Module
    weights: dict[Path, Weight]

    @classmethod
    def draw(
        cls,
        config: Mapping[str, Any],
        *,
        output: str | None = None,
        num_labels: int = 0,
        compute: Compute = Compute(),
        dropouts: Mapping[str, float] | None = None,
    ) -> "Blueprint":
        """The model of a `config.json` with the head that `output` names.

        `dropouts` replaces rates, by the keys of `DROPOUT_FIELDS`.

        Raises:
            UserError: a family, a field of the config or an output that is not there.
        """
        module, dims = family(config), dims_of(config)
        fields: dict[str, float] = {}
        for key, rate in (dropouts or {}).items():
            if key not in module.DROPOUT_FIELDS:
                known = ", ".join(f"model.{name}" for name in module.DROPOUT_FIELDS)
                raise UserError(
                    f"model.{key}: {config['model_type']} has no such rate, only {known}."
                )
            fields |= dict.fromkeys(module.DROPOUT_FIELDS[key], rate)
        dims = dataclasses.replace(dims, **fields)
        if output is not None and output not in module.Model.OUTPUTS:
            raise UserError(f"{config['model_type']} has no output {output!r}.")

        def make(compute: Compute, key: jax.Array) -> nnx.Module:
            return module.Model(
                dims, output=output, num_labels=num_labels, compute=compute, rngs=nnx.Rngs(key)
            )

        abstract = nnx.eval_shape(partial(make, compute), jax.random.key(0))
        return cls(dict(config), module, dims, output, compute, make, abstract, walk(abstract))

    def redraw(self, compute: Compute) -> "Blueprint":
        """The same model, computed in another way."""
        abstract = nnx.eval_shape(partial(self.make, compute), jax.random.key(0))
        return dataclasses.replace(self, compute=compute, abstract=abstract)

    @property
    def attention_dropout(self) -> float:
        return getattr(self.dims, self.module.DROPOUT_FIELDS["attention_dropout"][0])

    def match(
        self,
        checkpoint: pretrained.Checkpoint,
        new_head: bool = False,
        new_rows: NewRows | None = None,
    ) -> pretrained.Match:
        return pretrained.match(
            checkpoint,
            self.weights,
            prefix=self.module.PREFIX,
            unused=self.module.UNUSED_TENSORS,
            new=self.module.NEW_TENSORS,
            may_lack_head=self.output == "classify",
            new_head=new_head,
            new_rows=new_rows,
        )

    def initialise(
        self,
        paths: set[Path],
        shardings: Mapping[Path, jax.sharding.Sharding] | None = None,
        seed: int = 0,
    ) -> dict[Path, jax.Array]:
        """Random values of the weights at `paths`; the compiler drops the drawing of others."""
        if not paths:
            return {}

        def pick(key: jax.Array) -> dict[Path, jax.Array]:
            state = nnx.to_pure_dict(nnx.state(self.make(self.compute, key), nnx.Param))
            return {path: value for path, value in flatten(state) if path in paths}

        out = None if shardings is None else {path: shardings[path] for path in paths}
        return jax.jit(pick, out_shardings=out)(jax.random.key(seed))

    def merge(self, params: Tree) -> nnx.Module:
        """The module around `params`, inside or outside of a jit."""
        graph = nnx.graphdef(self.abstract)
        return nnx.merge(graph, params)


def load_pretrained(
    name: str | FilePath,
    *,
    output: str | None = None,
    num_labels: int | None = None,
    new_head: bool = False,
    compute: Compute = Compute(),
    seed: int = 0,
) -> nnx.Module:
    """An ordinary NNX module with the weights of a Hugging Face folder or hub id, on one device.

    `output="classify"` adds that head: the checkpoint's, or a fresh one (drawn from `seed`, with a
    warning) where there is none or `new_head` asks for it.

    Raises:
        UserError: the checkpoint is not there, not of a known family, or does not fit.
    """
    checkpoint = pretrained.Checkpoint(hub.locate(str(name), None)[0])
    config = dict(checkpoint.config)
    labels = count_labels(config) if num_labels is None else num_labels
    if output is not None and labels != count_labels(config):
        for told in ("num_labels", "problem_type"):  # of the labels that were
            config.pop(told, None)
        config["id2label"] = {str(i): f"LABEL_{i}" for i in range(labels)}
        config["label2id"] = {f"LABEL_{i}": i for i in range(labels)}
    drawn = Blueprint.draw(config, output=output, num_labels=labels, compute=compute)
    matched = drawn.match(checkpoint, new_head)
    if matched.new:
        fresh = ", ".join(name for weight in matched.new for name in weight.hf_names)
        warnings.warn(f"{name}: new, initialised at random: {fresh}", stacklevel=2)
    params = pretrained.read(matched, drawn.weights)
    params |= drawn.initialise({weight.path for weight in matched.new}, seed=seed)
    model = drawn.merge(unflatten(params))
    model.config_json, model.output = json.dumps(config), output  # type: ignore[attr-defined]
    return model


def save_pretrained(model: nnx.Module, folder: str | FilePath, *, dtype: str = "float32") -> None:
    """Write a model of `load_pretrained` as transformers reads it: config.json, safetensors."""
    config = json.loads(model.config_json)  # type: ignore[attr-defined]
    weights = walk(model)
    params = dict(flatten(nnx.to_pure_dict(nnx.state(model, nnx.Param))))
    output = model.output  # type: ignore[attr-defined]
    write_folder(FilePath(folder), config, params, weights, output=output, dtype=dtype)


def write_folder(
    folder: FilePath,
    config: Mapping[str, Any],
    params: Mapping[Path, jax.Array | np.ndarray],
    weights: Mapping[Path, Weight],
    *,
    output: str | None,
    dtype: str = "float32",
) -> None:
    """A model's `config.json` and safetensors; its output decides the `architectures` entry.

    With a head the base's names get the family's prefix, as in transformers. Where several
    processes share the weights, all must call this; the first one writes.

    Raises:
        UserError: a `dtype` that is not written, or a value that is not finite in it.
    """
    if dtype not in saving.NAMES:
        raise UserError(f"dtype={dtype!r}: weights are written as {', '.join(saving.NAMES)}.")
    module = family(config)
    config = {**config, "architectures": [module.ARCHITECTURES[output]], "dtype": dtype}
    config.pop("torch_dtype", None)
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    prefix = f"{module.PREFIX}." if output is not None else ""
    saving.write(folder, saving.to_tensors(params, weights, prefix=prefix), dtype)


def count_labels(config: Mapping[str, Any]) -> int:
    """The number of labels a `config.json` states; 2 when it is silent, as in transformers."""
    return len(config.get("id2label") or ()) or config.get("num_labels") or 2
