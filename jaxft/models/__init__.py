"""Model families, found by the `model_type` of a checkpoint's config.json: one file each.

A family's module has `Model` (an `nnx.Module`), `Dims`, `PREFIX`, `HARMLESS_FIELDS`, `UNUSED_TENSORS`, `NEW_TENSORS` and
`DROPOUT_FIELDS`; `bert.py` is the one to read.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path as FilePath
from pkgutil import iter_modules
from types import ModuleType
from typing import Any

import jax
import numpy as np
from flax import nnx

from jaxft import pretrained
from jaxft.errors import UserError
from jaxft.nn.fields import read_dims
from jaxft.nn.layers import Compute
from jaxft.nn.weights import Path, Tree, Weight, flatten, unflatten, walk


def family(config: Mapping[str, Any]) -> ModuleType:
    """The module of the family that `config["model_type"]` names.

    Raises:
        UserError: there is none, with the list of those there are.
    """
    name = config["model_type"].replace("-", "_")
    known = sorted(module.name for module in iter_modules(__path__))
    if name not in known:
        raise UserError(f"model_type {name!r} is not supported; there is {', '.join(known)}.")
    return import_module(f"{__name__}.{name}")


@dataclass(frozen=True)
class Blueprint:
    """A model that is described but not allocated: its config, its modules and its weights."""

    config: dict[str, Any]
    module: ModuleType
    compute: Compute
    build: Callable[[jax.Array], nnx.Module]
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
        """The model of a `config.json` with the head that `output` names; `dropouts` replaces rates (`DROPOUT_FIELDS`)."""
        module = family(config)
        dims = read_dims(module.Dims, config, module.HARMLESS_FIELDS)
        fields = {module.DROPOUT_FIELDS[key]: rate for key, rate in (dropouts or {}).items()}
        dims = dataclasses.replace(dims, **fields)
        if output is not None and output not in module.Model.OUTPUTS:
            raise UserError(f"{config['model_type']} has no output {output!r}.")

        def build(key: jax.Array) -> nnx.Module:
            return module.Model(
                dims, output=output, num_labels=num_labels, compute=compute, rngs=nnx.Rngs(key)
            )

        abstract = nnx.eval_shape(build, jax.random.key(0))
        return cls(dict(config), module, compute, build, abstract, walk(abstract))

    @property
    def dims(self) -> Any:
        return self.abstract.dims  # type: ignore[attr-defined]

    @property
    def attention_dropout(self) -> float:
        return getattr(self.dims, self.module.DROPOUT_FIELDS["attention_dropout"])

    def match(self, checkpoint: pretrained.Checkpoint, new_head: bool = False) -> pretrained.Match:
        return pretrained.match(
            checkpoint,
            self.weights,
            prefix=self.module.PREFIX,
            unused=self.module.UNUSED_TENSORS,
            new=self.module.NEW_TENSORS,
            new_head=new_head,
        )

    def initialise(
        self, paths: set[Path], shardings: Mapping[Path, jax.sharding.Sharding], seed: int
    ) -> dict[Path, jax.Array]:
        """Random values of the weights at `paths` only; the compiler drops the others' initialisation."""
        if not paths:
            return {}

        def pick(key: jax.Array) -> dict[Path, jax.Array]:
            state = nnx.to_pure_dict(nnx.state(self.build(key), nnx.Param))
            return {path: value for path, value in flatten(state) if path in paths}

        out = {path: shardings[path] for path in paths}
        return jax.jit(pick, out_shardings=out)(jax.random.key(seed))

    def merge(self, params: Tree) -> nnx.Module:
        """The module around `params`, inside or outside of a jit."""
        graph = nnx.graphdef(self.abstract)
        return nnx.merge(graph, params)


def load_pretrained(
    name: str,
    *,
    output: str | None = None,
    num_labels: int | None = None,
    compute: Compute = Compute(),
    seed: int = 0,
) -> nnx.Module:
    """An ordinary NNX module with the weights of a Hugging Face folder or hub id, on the default device.

    `output="classify"` adds that head: the checkpoint's, or a fresh one (drawn from `seed`) for `num_labels`.

    Raises:
        UserError: the checkpoint is not there, not of a known family, or does not fit.
    """
    checkpoint = pretrained.Checkpoint(pretrained.locate(name)[0])
    labels = num_labels if num_labels is not None else count_labels(checkpoint.config)
    drawn = Blueprint.draw(checkpoint.config, output=output, num_labels=labels, compute=compute)
    matched = drawn.match(checkpoint)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shardings = dict.fromkeys(drawn.weights, device)
    params = pretrained.read(matched, drawn.weights, shardings)
    params |= drawn.initialise({weight.path for weight in matched.new}, shardings, seed)
    model = drawn.merge(unflatten(params))
    model.config_json = json.dumps(checkpoint.config)  # type: ignore[attr-defined]
    return model


def save_pretrained(model: nnx.Module, folder: str | FilePath, *, dtype: str = "float32") -> None:
    """Write `config.json` and safetensors of a model from `load_pretrained` as transformers reads them."""
    config = json.loads(model.config_json)  # type: ignore[attr-defined]
    weights = walk(model)
    params = dict(flatten(nnx.to_pure_dict(nnx.state(model, nnx.Param))))
    write_folder(FilePath(folder), config, params, weights, dtype=dtype)


def write_folder(
    folder: FilePath,
    config: Mapping[str, Any],
    params: Mapping[Path, jax.Array | np.ndarray],
    weights: Mapping[Path, Weight],
    *,
    dtype: str = "float32",
) -> None:
    """A model's `config.json` and safetensors; heads decide the `architectures` entry."""
    folder.mkdir(parents=True, exist_ok=True)
    module = family(config)
    output = next((weight.path[1] for weight in weights.values() if weight.in_head), None)
    config = {**config, "architectures": [module.ARCHITECTURES[output]], "dtype": dtype}
    config.pop("torch_dtype", None)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    pretrained.write(
        folder, pretrained.to_tensors(params, weights, prefix=module.PREFIX, dtype=dtype)
    )


def count_labels(config: Mapping[str, Any]) -> int:
    """The number of labels a `config.json` states; 2 when it is silent, as in transformers."""
    if "id2label" in config:
        return len(config["id2label"])
    return config.get("num_labels", 2)
