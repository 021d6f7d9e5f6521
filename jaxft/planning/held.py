"""Bytes for one device that no batch changes: of weights, and of what there is one of for each."""

from dataclasses import dataclass
from math import prod
from typing import Any

import jax
import jax.numpy as jnp

from jaxft.nn.weights import unflatten
from jaxft.planning.sketch import Sketch
from jaxft.sharding import placed

ON_DEVICE = (None, "device")
"""Memory kinds that count; the others are the host's."""


@dataclass(frozen=True)
class Held:
    """Exact: what the arrays' shapes and shardings say."""

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
    def by(cls, sketch: Sketch) -> "Held":
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
