"""How far updates move the weights at each depth, for the logs. D depths."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.nn.weights import Path, Tree, Weight, flatten
from jaxft.sharding import placed
from jaxft.store import Store

COLUMNS = 64
"""At most so many columns of each weight are looked at: a copy of all weights would not fit beside
the largest models.
"""


class Movement(NamedTuple):
    """What an update did, per depth."""

    ratio_D: jax.Array
    """|update| / |weight|"""
    changed_D: jax.Array
    """The share of weights whose stored value changed."""


class Depths:
    """Looks at every n-th column of each weight before and after an update."""

    def __init__(self, weights: Mapping[Path, Weight], store: Store):
        self.weights, self.store = weights, store
        self.count = 1 + max(depth for weight in weights.values() for depth in weight.depth)
        sizes_D = np.zeros(self.count, np.float32)
        for weight in weights.values():
            np.add.at(sizes_D, list(weight.depth), weight.size / len(weight.depth))
        self.shares_D = sizes_D / sizes_D.sum()
        """Share of all weights at each depth."""
        self.probe: Callable[[Tree], dict[Path, jax.Array]] = jax.jit(self._probe)
        self.compare: Callable[[dict[Path, jax.Array], Tree], Movement] = jax.jit(self._compare)

    def compile(self, params: Tree) -> None:
        """Compiles both for abstract `params`, before the first update."""
        probe = self.probe.lower(params).compile()  # type: ignore[attr-defined]
        seen = jax.eval_shape(self._probe, params)
        before = placed(seen, probe.output_shardings)
        compare = self.compare.lower(before, params).compile()  # type: ignore[attr-defined]
        self.probe, self.compare = probe, compare

    def _probe(self, params: Tree) -> dict[Path, jax.Array]:
        """Evenly spaced columns, of an embedding too: its rows are updated very unevenly."""

        def columns(_: Weight, x: jax.Array) -> jax.Array:
            return x[..., :: -(-x.shape[-1] // COLUMNS)]

        return dict(flatten(self.store.look(params, columns)))

    def _compare(self, before: dict[Path, jax.Array], params: Tree) -> Movement:
        after = self._probe(params)
        moved_D = self._sum(lambda a, b: jnp.square(a - b), after, before)
        size_D = self._sum(lambda a, b: jnp.square(b), after, before)
        changed_D = self._sum(lambda a, b: (a != b).astype(jnp.float32), after, before)
        count_D = self._sum(lambda a, b: jnp.ones_like(b), after, before)
        return Movement(jnp.sqrt(moved_D / size_D), changed_D / count_D)

    def _sum(
        self,
        function: Callable[[jax.Array, jax.Array], jax.Array],
        after: dict[Path, jax.Array],
        before: dict[Path, jax.Array],
    ) -> jax.Array:
        total_D = jnp.zeros(self.count)
        for path, weight in self.weights.items():
            values = function(after[path], before[path]).reshape(len(weight.depth), -1).sum(1)
            total_D = total_D.at[jnp.array(weight.depth)].add(values)
        return total_D
