"""Bytes one device needs for an update, by cause, worked out without a compiler.

Parameters and optimizer state are exact. What the backward pass keeps is what JAX says it would
keep, split as rows and heads are; the rest are rules that were read off compiled programs, and
`tests/planning/test_estimates.py` holds them to the compiler's numbers.
"""

from dataclasses import asdict, dataclass, replace
from functools import cached_property
from math import prod
from typing import Any

import jax
import jax.numpy as jnp

from jaxft.nn.losses import LOGITS_BYTES
from jaxft.nn.weights import Weight, unflatten
from jaxft.planning.sketch import Sketch
from jaxft.sharding import placed

ON_DEVICE = (None, "device")
"""Memory kinds that count; the others are the host's."""
LOGITS_COPIES = 0.75
"""Of a chunk's float32 logits: compilers fuse the softmax, and keep its gradient in bfloat16."""
RECOMPUTED_AT_ONCE = 0.5
"""Share of a layer's activations that is there at once while they are recomputed."""
LAYERS_IN_FLIGHT = 2
"""Layers whose whole weights a device holds: one at work, the next on its way."""


@dataclass(frozen=True)
class Footprint:
    """Bytes on one device; each cause at its highest, which they do not reach at the same time."""

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    vocabulary: int
    """The head while it is whole, its gradient, and logits."""
    workspace: int
    """Copies of the weights in the dtype of the computation, whole layers, a layer's recomputed
    activations.
    """
    peak: int
    """The highest sum."""
    host: int = 0
    """Bytes in the host's memory for this device."""
    fetched: int = 0
    """Bytes that come from there in an update; as many go back, or fewer."""

    def to_json(self) -> dict[str, int]:
        return asdict(self)


@dataclass(frozen=True)
class _Kept:
    """One array that the backward pass keeps."""

    bytes_per_row: float
    shape: tuple[int, ...]
    """With one row."""
    on_host: bool


@dataclass(frozen=True)
class _Held:
    """Bytes for one device of weights and of what there is one of for each."""

    params: int
    """That the model computes with."""
    grads: int
    summed: int
    """Gradients as they are added up over micro-batches."""
    moments: int
    host_params: int
    host_moments: int

    @property
    def host(self) -> int:
        return self.host_params + self.host_moments

    @property
    def fetched(self) -> int:
        """From the host for an update, and the weights before it for a working copy."""
        return self.host + self.host_params

    @classmethod
    def by(cls, sketch: Sketch) -> "_Held":
        experiment, working = sketch.experiment, sketch.working
        state = experiment.abstract_state(experiment.optimizer(sketch.steps or 1000))
        grads = placed(working, unflatten(experiment.places.gradients))
        summed = jax.tree.map(lambda x: x.update(dtype=jnp.float32), grads)
        near, far = _bytes(state.opt_state)
        return cls(
            params=_bytes(working)[0],
            grads=_bytes(grads)[0],
            summed=_bytes(summed)[0],
            moments=near,
            host_params=_bytes(state.params)[1],
            host_moments=far,
        )


class Estimator:
    """Footprints of a run and of its neighbours: sketches that differ in config and mesh."""

    def __init__(self, sketch: Sketch):
        self._drawn, self._task = sketch.experiment.drawn, sketch.experiment.task
        self._batch = sketch.batch
        self._kept: dict[str, list[_Kept]] = {}
        self._held: dict[Any, _Held] = {}

    def __call__(self, sketch: Sketch) -> Footprint:
        """The footprint of an update."""
        experiment, config = sketch.experiment, sketch.config
        held = self._hold(sketch)
        params, grads = held.params, held.grads
        summed = held.summed if config.train.gradient_accumulation_steps > 1 else 0
        rows = _rows(sketch)
        mode, tensor = config.model.activation_checkpointing, experiment.mesh.shape["tensor"]
        activations = rows * self._activations(mode, tensor)
        recomputed = 0.0
        if mode != "none":
            layer = rows * self._activations("none", tensor) / self._layers
            recomputed = RECOMPUTED_AT_ONCE * layer
        vocabulary = self._vocabulary(sketch)
        copies = 0.0 if config.optim.offload else self._copies(sketch, params)
        in_flight = self._whole_layers(sketch)
        fixed = params + held.moments + summed
        on_host = rows * self._activations(mode, tensor, on_host=True)
        phases = {
            "loss": activations + copies + vocabulary["loss"],
            "layers": grads + activations + copies + in_flight + recomputed + vocabulary["layers"],
        }
        return Footprint(
            parameters=params,
            gradients=grads + summed,
            optimizer=held.moments,
            activations=round(activations),
            vocabulary=round(max(vocabulary.values())),
            workspace=round(copies + in_flight + recomputed),
            peak=round(fixed + max(phases.values())),
            host=held.host + round(on_host),
            fetched=held.fetched + round(on_host * config.train.gradient_accumulation_steps),
        )

    def evaluation(self, sketch: Sketch) -> int:
        """About the peak of an evaluation: no gradients, no moments, one layer at work."""
        params = self._hold(sketch).params
        rows = sketch.evaluation_rows / _token_shards(sketch)
        tensor = sketch.experiment.mesh.shape["tensor"]
        layer = rows * self._activations("none", tensor) / self._layers
        words = self._words(sketch)
        words += sum(self._logits(sketch, head, rows) for head in self._heads)
        copies = self._copies(sketch, params)
        return round(params + copies + max(words, self._whole_layers(sketch) + layer / 2))

    @cached_property
    def _layers(self) -> int:
        stacked = [weight.shape[0] for weight in self._drawn.weights.values() if weight.stacked]
        return max(stacked, default=1)

    @property
    def _itemsize(self) -> int:
        return jnp.dtype(self._drawn.compute.dtype).itemsize

    def _hold(self, sketch: Sketch) -> _Held:
        """What no batch changes: neighbours share it."""
        key = (sketch.config.mesh, repr(sketch.config.optim))
        if key not in self._held:
            self._held[key] = _Held.by(sketch)
        return self._held[key]

    def _activations(self, mode: str, tensor: int, *, on_host: bool = False) -> float:
        """Bytes of a row for one device. What is as wide as the model is on all of `tensor`."""
        if mode not in self._kept:
            self._kept[mode] = self._keeps(mode)
        whole = self._width
        return sum(
            kept.bytes_per_row
            / (
                1
                if not kept.shape or kept.shape[-1] == whole or kept.shape[-1] % tensor
                else tensor
            )
            for kept in self._kept[mode]
            if kept.on_host == on_host
        )

    @cached_property
    def _width(self) -> int:
        """Of the model."""
        return next(
            w.shape[w.axes.index("embed")]
            for w in self._drawn.weights.values()
            if "embed" in w.axes
        )

    def _keeps(self, mode: str) -> list[_Kept]:
        """What the backward pass reads again, by its size with one row and with two: weights and
        constants do not grow.
        """
        compute = replace(
            self._drawn.compute,
            activation_checkpointing=mode,  # type: ignore[arg-type]
            unroll_layers=False,
        )
        drawn = self._drawn.redraw(compute)
        params = {
            path: jax.ShapeDtypeStruct(w.shape, jnp.float32) for path, w in drawn.weights.items()
        }

        def pull(params: Any, batch: Any, key: jax.Array) -> Any:
            def loss(params: Any) -> jax.Array:
                return self._task.loss(drawn.merge(params), batch, key)[0]

            return jax.vjp(loss, params)[1]

        def sizes(rows: int) -> list[Any]:
            plain = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), self._batch(rows)
            )
            key = jax.eval_shape(lambda: jax.random.key(0))
            return jax.make_jaxpr(pull)(unflatten(params), plain, key).out_avals

        kept = []
        for one, two in zip(sizes(1), sizes(2), strict=True):
            grows = prod(two.shape) - prod(one.shape)
            if grows:
                on_host = one.memory_space == jax.memory.Space.Host
                kept.append(_Kept(grows * one.dtype.itemsize, one.shape, on_host))
        return kept

    def _copies(self, sketch: Sketch, params: int) -> float:
        """The stacks in the dtype of the computation, which the compiler makes before the loop."""
        if self._itemsize == 4:
            return 0.0
        weights = self._drawn.weights.values()
        stacked = sum(w.size for w in weights if w.stacked) / sum(w.size for w in weights)
        return params * stacked * self._itemsize / 4

    def _whole_layers(self, sketch: Sketch) -> float:
        """Layers that fsdp gathers, and the gradient of one before it is split again."""
        mesh = sketch.experiment.mesh.shape
        if mesh["fsdp"] == 1 or sketch.config.mesh.zero_stage == 2:
            return 0.0
        stacked = sum(w.size for w in self._drawn.weights.values() if w.stacked)
        layer = stacked / self._layers / mesh["tensor"]
        return layer * (LAYERS_IN_FLIGHT + 1) * self._itemsize

    def _vocabulary(self, sketch: Sketch) -> dict[str, float]:
        """Bytes while the loss and while the layers' gradients are computed."""
        whole = loss = self._words(sketch)
        for head in self._heads:
            loss += head.size * 4  # its gradient, of all this device's tokens
            loss += LOGITS_COPIES * self._logits(sketch, head, _rows(sketch))
        # Micro-batches share the gathered head, which stays while they run.
        return {
            "loss": loss,
            "layers": whole if sketch.config.train.gradient_accumulation_steps > 1 else 0.0,
        }

    def _words(self, sketch: Sketch) -> float:
        """The heads over the vocabulary, whole and in the dtype of the computation."""
        if _token_shards(sketch) == 1 and self._itemsize == 4:
            return 0.0
        return float(sum(head.size for head in self._heads) * self._itemsize)

    @property
    def _heads(self) -> list[Weight]:
        """The matrix that gives logits over the vocabulary, where there is one."""
        return [w for w in self._drawn.weights.values() if w.tied or _is_vocabulary_head(w)]

    def _logits(self, sketch: Sketch, head: Weight, rows: float) -> float:
        """One chunk in float32."""
        return min(LOGITS_BYTES, 4 * rows * sketch.width * head.size / self._width)


def _rows(sketch: Sketch) -> float:
    """Of a micro-batch, on one device; parts of rows count as parts."""
    return sketch.rows / sketch.config.train.gradient_accumulation_steps / _token_shards(sketch)


def _token_shards(sketch: Sketch) -> int:
    return sketch.experiment.row_shards * sketch.experiment.mesh.shape["context"]


def _is_vocabulary_head(weight: Weight) -> bool:
    return weight.in_head and "vocab" in weight.axes and weight.kind == "kernel"


def _bytes(tree: Any) -> tuple[int, int]:
    """Bytes of one shard of every leaf, on the device and on the host."""
    device = host = 0
    for leaf in jax.tree.leaves(tree):
        size = prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        if leaf.sharding.memory_kind in ON_DEVICE:
            device += size
        else:
            host += size
    return device, host
