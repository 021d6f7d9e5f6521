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

from jaxft.nn.blocked import BLOCK
from jaxft.nn.losses import LOGITS_BYTES
from jaxft.nn.weights import Weight, unflatten
from jaxft.planning.held import Held
from jaxft.planning.sketch import Sketch

LOGITS_COPIES = 0.75
"""Of a chunk's float32 logits: compilers fuse the softmax, and keep its gradient in bfloat16."""
RECOMPUTED_AT_ONCE = 0.5
"""Share of a layer's activations that is there at once while they are recomputed."""
UNFUSED = 2.5
"""Arrays as large as a layer's largest that an evaluation holds at once, about, where what follows
a matrix product is computed apart from it: so on CPU, and on GPU by assumption. A TPU's compiler
fuses the two, and holds one.
"""


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


class Estimator:
    """Footprints of a run and of its neighbours: sketches that differ in config and mesh."""

    def __init__(self, sketch: Sketch):
        self._drawn, self._task = sketch.experiment.drawn, sketch.experiment.task
        self._batch = sketch.batch
        self._kept: dict[tuple[str, str], list[_Kept]] = {}
        self._held: dict[Any, Held] = {}

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
        in_flight = self._whole_layer(sketch)
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
        """About the peak of an evaluation: first one layer at work, then logits."""
        params = self._hold(sketch).params
        rows = sketch.evaluation_rows / _token_shards(sketch)
        stream = rows * sketch.width * self._width * self._itemsize  # what the layers add to
        copies = 0.0 if sketch.config.optim.offload else self._copies(sketch, params)
        layers = copies + self._whole_layer(sketch) + rows * self._evaluated(sketch)
        logits = sum(self._logits(sketch, head, rows) for head in self._heads)
        return round(params + stream + max(layers, self._words(sketch) + logits))

    @cached_property
    def _layers(self) -> int:
        stacked = [weight.shape[0] for weight in self._drawn.weights.values() if weight.stacked]
        return max(stacked, default=1)

    @property
    def _itemsize(self) -> int:
        return jnp.dtype(self._drawn.compute.dtype).itemsize

    def _hold(self, sketch: Sketch) -> Held:
        """What no batch changes: neighbours share it."""
        key = (sketch.config.mesh, repr(sketch.config.optim))
        if key not in self._held:
            self._held[key] = Held.by(sketch)
        return self._held[key]

    def _activations(self, mode: str, tensor: int, *, on_host: bool = False) -> float:
        """Bytes of a row for one device."""
        return sum(self._shares(mode, tensor, on_host=on_host))

    def _shares(
        self, mode: str, tensor: int, attention: str | None = None, *, on_host: bool = False
    ) -> list[float]:
        """Of each array. What is as wide as the model is on all of `tensor`."""
        key = mode, attention or self._drawn.compute.attention
        if key not in self._kept:
            self._kept[key] = self._keeps(*key)
        whole = self._width
        return [
            kept.bytes_per_row
            / (
                1
                if not kept.shape or kept.shape[-1] == whole or kept.shape[-1] % tensor
                else tensor
            )
            for kept in self._kept[key]
            if kept.on_host == on_host
        ]

    @cached_property
    def _width(self) -> int:
        """Of the model."""
        return next(
            w.shape[w.axes.index("embed")]
            for w in self._drawn.weights.values()
            if "embed" in w.axes
        )

    def _evaluated(self, sketch: Sketch) -> float:
        """Bytes of a row that the evaluation of a layer holds at once."""
        mesh = sketch.experiment.mesh
        tensor, on_tpu = mesh.shape["tensor"], mesh.devices.flat[0].platform == "tpu"
        unfused = 1 if on_tpu else UNFUSED
        largest = max(self._shares("none", tensor)) / self._layers
        if self._drawn.compute.attention != "blocked":
            return unfused * largest
        # The kernel keeps no logits, but the compiler works out those of all blocks before the
        # first is done, and then a block's weights. XLA's attention, which keeps all, tells how
        # large they are where every query sees every key: less under a causal mask or a window.
        logits = max(self._shares("none", tensor, "xla")) / self._layers
        block = logits * min(1, BLOCK / sketch.width)
        return max(unfused * max(largest, block), logits + block)

    def _keeps(self, mode: str, attention: str) -> list[_Kept]:
        """What the backward pass reads again, by its size with one row and with two: weights and
        constants do not grow.
        """
        compute = replace(
            self._drawn.compute,
            activation_checkpointing=mode,  # type: ignore[arg-type]
            attention=attention,  # type: ignore[arg-type]
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

    def _whole_layer(self, sketch: Sketch) -> float:
        """Bytes of one layer that fsdp gathers: about as much is there at once of the one at work,
        of the next and of gradients before they are split again.
        """
        mesh = sketch.experiment.mesh.shape
        if mesh["fsdp"] == 1 or sketch.config.mesh.zero_stage == 2:
            return 0.0
        stacked = sum(w.size for w in self._drawn.weights.values() if w.stacked)
        return stacked / self._layers / mesh["tensor"] * self._itemsize

    def _vocabulary(self, sketch: Sketch) -> dict[str, float]:
        """Bytes while the loss and while the layers' gradients are computed."""
        mesh = sketch.experiment.mesh.shape
        whole = loss = self._words(sketch)
        # Micro-batches share the gathered head, which stays while they run.
        layers = whole if sketch.config.train.gradient_accumulation_steps > 1 else 0.0
        for head in self._heads:
            gradient = head.size * 4 / mesh["tensor"]  # of all this device's tokens
            loss += gradient + LOGITS_COPIES * self._logits(sketch, head, _rows(sketch))
            # Nothing waits for it: the TPU's compiler splits it over fsdp after the layers.
            layers += gradient * (1 - 1 / mesh["fsdp"])
        return {"loss": loss, "layers": layers}

    def _words(self, sketch: Sketch) -> float:
        """The heads over the vocabulary in the dtype of the computation, split by `tensor` only."""
        if _token_shards(sketch) == 1 and self._itemsize == 4:
            return 0.0
        tensor = sketch.experiment.mesh.shape["tensor"]
        return sum(head.size for head in self._heads) * self._itemsize / tensor

    @property
    def _heads(self) -> list[Weight]:
        """The matrix that gives logits over the vocabulary, where there is one."""
        return [w for w in self._drawn.weights.values() if w.tied or _is_vocabulary_head(w)]

    def _logits(self, sketch: Sketch, head: Weight, rows: float) -> float:
        """One chunk in float32."""
        chunk = min(LOGITS_BYTES, 4 * rows * sketch.width * head.size / self._width)
        return chunk / sketch.experiment.mesh.shape["tensor"]


def _rows(sketch: Sketch) -> float:
    """Of a micro-batch, on one device; parts of rows count as parts."""
    return sketch.rows / sketch.config.train.gradient_accumulation_steps / _token_shards(sketch)


def _token_shards(sketch: Sketch) -> int:
    return sketch.experiment.row_shards * sketch.experiment.mesh.shape["context"]


def _is_vocabulary_head(weight: Weight) -> bool:
    return weight.in_head and "vocab" in weight.axes and weight.kind == "kernel"
