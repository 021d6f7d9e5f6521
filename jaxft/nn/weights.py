"""What is known about each weight, read off the model that declares it.

Every `nnx.Param` carries `axes`, `hf`, `kind` and, where the file stores `[out, in]`, `transposed`;
`part` of a fused tensor and `tied` where they apply.
`walk` turns an (abstract) model into one `Weight` per parameter; import, export, sharding, learning
rates and the FLOP count are derived from these and from nothing else.
"""

from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

from flax import nnx

Kind = Literal["kernel", "embedding", "bias", "norm"]
Path = tuple[str, ...]
Tree = dict[str, Any]
"""A plain nested dict, keyed by the parts of a `Path`: what crosses every jit boundary."""
BLOCK_BYTES = 8 * 2**20
"""So much of a weight passes through the host's memory at once, whichever way it goes."""
ROWS_BYTES = 4 * 2**20
"""So much of a block is held twice, in the file's type and order and in the weight's."""


@dataclass(frozen=True)
class Weight:
    """The facts of one parameter; stacked ones have a leading `layers` axis."""

    path: Path
    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    hf: str
    kind: Kind
    transposed: bool
    layers: tuple[int, ...]
    """Checkpoint indices of the stacked layers; empty for a weight that stands alone."""
    depth: tuple[int, ...]
    """0 embeddings, i + 1 for layer i, the last layer's for pooler and final norm, one more for
    heads.
    """
    part: tuple[int, int] | None = None
    """(i, n): the i-th of n weights that lie side by side, along the last axis, in one tensor."""
    tied: str | None = None
    """The checkpoint's name for a head that is this weight too."""

    @property
    def name(self) -> str:
        return "/".join(self.path)

    @property
    def stacked(self) -> bool:
        return bool(self.layers)

    @property
    def in_head(self) -> bool:
        return self.path[0] == "heads"

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def hf_names(self) -> tuple[str, ...]:
        """Names in the checkpoint, one per stacked layer, without the family's prefix."""
        return tuple(self.hf.format(layer=i) for i in self.layers) or (self.hf,)

    @property
    def hf_shape(self) -> tuple[int, ...]:
        """Shape of each of those tensors in the file."""
        shape = self.shape[1:] if self.stacked else self.shape
        if self.part is not None:
            shape = (*shape[:-1], shape[-1] * self.part[1])
        return shape[::-1] if self.transposed else shape

    @property
    def blocks_axis(self) -> int:
        """The axis that orders the file: layers of a stack, rows of a tensor that stands alone."""
        return len(self.shape) - 1 if self.transposed and not self.stacked else 0

    def blocks(self) -> list[slice]:
        """Along that axis, parts of `BLOCK_BYTES` in float32 at most, or of one layer or row."""
        length = self.shape[self.blocks_axis]
        step = max(1, length * BLOCK_BYTES // (4 * max(1, self.size)))
        return [slice(i, min(i + step, length)) for i in range(0, length, step)]


def walk(model: nnx.Module) -> dict[Path, Weight]:
    """One `Weight` per parameter of `model`, which may be abstract, in the order of its tree."""
    params = nnx.to_flat_state(nnx.state(model, nnx.Param))
    facts = {tuple(map(str, path)): (param.shape, param.get_metadata()) for path, param in params}
    top = max(
        (max(meta["layers"]) + 1 for _, meta in facts.values() if meta.get("layers")), default=0
    )

    def depth(path: Path, layers: tuple[int, ...]) -> tuple[int, ...]:
        if layers:
            return tuple(i + 1 for i in layers)
        return ({"embeddings": 0, "heads": top + 1}.get(path[0], top),)

    return {
        path: Weight(
            path=path,
            shape=shape,
            axes=(("layers",) if meta.get("layers") else ()) + meta["axes"],
            hf=meta["hf"],
            kind=meta["kind"],
            transposed=meta.get("transposed", False),
            part=meta.get("part"),
            tied=meta.get("tied"),
            layers=meta.get("layers", ()),
            depth=depth(path, meta.get("layers", ())),
        )
        for path, (shape, meta) in facts.items()
    }


def flatten(tree: Mapping[str, Any], prefix: Path = ()) -> Iterator[tuple[Path, Any]]:
    """The leaves of a nested dict with their paths."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, (*prefix, str(key)))
        else:
            yield (*prefix, str(key)), value


def unflatten(leaves: Mapping[Path, Any]) -> Tree:
    """The nested dict whose `flatten` gives `leaves`."""
    tree: Tree = {}
    for path, value in leaves.items():
        node = tree
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = value
    return tree


def part(tree: Mapping[str, Any], paths: Container[Path]) -> Tree:
    """The nested dict of those leaves alone that lie at `paths`."""
    return unflatten({path: leaf for path, leaf in flatten(tree) if path in paths})


def map_weights(function: Callable[[Weight], Any], weights: Mapping[Path, Weight]) -> Tree:
    """A tree like the parameters', holding `function` of each weight."""
    return unflatten({path: function(weight) for path, weight in weights.items()})


def flops_per_token(weights: Mapping[Path, Weight], length: int) -> float:
    """Floating-point operations of one update per (padded) token in rows of this length.

    6 per weight of the layers' matrices and of a language-model head (2 forward, 4 backward) and
    12 * width * length per layer for the attention products. Source: Chowdhery et al. 2022 (PaLM),
    appendix B.
    """
    layers = [weight for weight in weights.values() if weight.stacked and weight.kind == "kernel"]
    vocabulary = [w for w in weights.values() if w.tied or (w.in_head and "vocab" in w.axes)]
    matrices = 6.0 * sum(weight.size for weight in [*layers, *vocabulary])
    # The output projection of attention is the kernel that reads the heads' axis.
    outputs = [weight for weight in layers if weight.axes[1] == "heads"]
    return matrices + sum(12.0 * weight.shape[0] * weight.shape[1] * length for weight in outputs)
