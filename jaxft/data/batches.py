"""Batches as a pure function of (seed, step): which rows make up update k, and their arrays.

From the token lengths alone an epoch's plan is computed: rows of similar length together, padded to
one of few lengths, so that few programs are compiled. Neither devices, hosts nor accumulation
change it, and update k needs no iterator state.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from typing import Any

import datasets
import grain
import jax
import numpy as np
from jax.sharding import NamedSharding

from jaxft.nn.tokens import Batch, Tokens

LENGTHS = 5
"""How many padded lengths training uses at most: each costs a compilation."""
SCORING_LENGTHS = 3
"""The same for evaluation, which sees each row less often."""
MULTIPLE = 8
"""Padded lengths are multiples of this."""
GROUP = 50
"""Rows are sorted by length within groups of this many batches, as transformers' length grouping
does.
"""


def padded_lengths(batch_lengths: Sequence[int], at_most: int, limit: int) -> tuple[int, ...]:
    """The lengths, at most `at_most`, that pad batches with these longest rows by the fewest
    tokens.
    """
    rounded = np.minimum(-(-np.asarray(batch_lengths) // MULTIPLE) * MULTIPLE, limit)
    sizes, counts = np.unique(rounded, return_counts=True)
    n = len(sizes)
    total = np.concatenate([[0], np.cumsum(counts)])
    # cost[k][j]: the fewest padded tokens for the j shortest sizes with k lengths, the last being
    # sizes[j - 1].
    cost = np.full((min(at_most, n) + 1, n + 1), np.inf)
    cost[0, 0] = 0
    cut = np.zeros(cost.shape, int)
    for k in range(1, len(cost)):
        for j in range(1, n + 1):
            options = cost[k - 1, :j] + sizes[j - 1] * (total[j] - total[:j])
            cut[k, j] = options.argmin()
            cost[k, j] = options.min()
    chosen, j = [], n
    for k in range(int(cost[:, n].argmin()), 0, -1):
        chosen.append(int(sizes[j - 1]))
        j = cut[k, j]
    return tuple(reversed(chosen))


@dataclass(frozen=True)
class Plan:
    """Which rows, padded to which length, make up batch k."""

    lengths: np.ndarray
    """Tokens of each row, int [N]."""
    batch_size: int
    max_length: int
    seed: int | None
    """None: rows in order of length, once, for evaluation."""
    group_by_length: bool = True
    lengths_at_most: int = LENGTHS

    @property
    def batches_per_epoch(self) -> int:
        return ceil(len(self.lengths) / self.batch_size)

    def __getitem__(self, k: int) -> tuple[np.ndarray, int]:
        """(row numbers [batch_size] with -1 for fillers, padded length)."""
        rows = self._epoch(k // self.batches_per_epoch)[k % self.batches_per_epoch]
        longest = int(self.lengths[rows[rows >= 0]].max())
        return rows, next(length for length in self.shapes if length >= longest)

    def tokens(self, k: int) -> int:
        """Real tokens of batch k, over all processes."""
        rows, _ = self[k]
        return int(self.lengths[rows[rows >= 0]].sum())

    def lengths_of(self, start: int, end: int) -> tuple[int, ...]:
        """The padded lengths that batches `start` to `end` use, shortest first."""
        used: set[int] = set()
        for k in range(start, end):
            used.add(self[k][1])
            if len(used) == len(self.shapes):
                break
        return tuple(sorted(used))

    @property
    def shapes(self) -> tuple[int, ...]:
        """The padded lengths, shortest first; the same for every epoch."""
        return _shapes(self)

    def _epoch(self, epoch: int) -> np.ndarray:
        return _epoch(self, epoch)

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


@lru_cache(maxsize=8)
def _shapes(plan: Plan) -> tuple[int, ...]:
    longest = plan.lengths[plan._epoch(0)].max(axis=1)  # a filler (-1) repeats the last row
    everything = -(-int(plan.lengths.max()) // MULTIPLE) * MULTIPLE
    limit = min(plan.max_length, everything)
    return padded_lengths([*longest, limit], plan.lengths_at_most, limit)


@lru_cache(maxsize=4)
def _epoch(plan: Plan, epoch: int) -> np.ndarray:
    """Row numbers [batches, batch_size] of one pass over the data."""
    n, size = len(plan.lengths), plan.batch_size
    if plan.seed is None:
        order = np.argsort(plan.lengths, kind="stable")
        return _cut(order, size)
    random = np.random.default_rng([plan.seed, epoch])
    order = random.permutation(n)
    if not plan.group_by_length:
        return _cut(order, size)
    group = GROUP * size
    groups = [order[i : i + group] for i in range(0, n, group)]
    order = np.concatenate([g[np.argsort(plan.lengths[g], kind="stable")] for g in groups])
    return random.permutation(_cut(order, size))


def _cut(order: np.ndarray, size: int) -> np.ndarray:
    fillers = np.full(-len(order) % size, -1, order.dtype)
    return np.concatenate([order, fillers]).reshape(-1, size)


@dataclass(frozen=True)
class BatchSource:
    """Host batches by number: the plan's rows, tokens padded on the right, fillers with weight 0.

    Only the rows in `mine` are fetched and filled: the ones that this process's devices hold.
    """

    plan: Plan
    dataset: datasets.Dataset
    collate: Callable[[Mapping[str, Sequence], int], Any]
    """A task's targets from the columns of some rows and the padded length; every leaf has one
    entry a row.
    """
    count: int
    mine: np.ndarray
    """bool [batch_size]"""

    def __len__(self) -> int:
        return self.count

    def empty(self, length: int) -> Batch:
        """A batch of fillers of this padded length, to compile with."""
        return self._assemble(np.full(self.plan.batch_size, -1), length)

    def __getitem__(self, k: int) -> Batch:
        return self._assemble(*self.plan[int(k)])

    def _assemble(self, rows: np.ndarray, length: int) -> Batch:
        fetched = np.flatnonzero((rows >= 0) & self.mine)
        # Where all rows are fillers, one real row still gives the shapes of the targets.
        columns = self.dataset[rows[fetched] if len(fetched) else [int(self.plan.lengths.argmin())]]

        def spread(values: np.ndarray) -> np.ndarray:
            full = np.zeros((len(rows), *values.shape[1:]), values.dtype)
            full[fetched] = values[: len(fetched)]
            return full

        def tokens(name: str) -> np.ndarray:
            padded = np.zeros((len(columns["input_ids"]), length), np.int32)
            for row, values in zip(padded, columns[name], strict=True):
                row[: len(values)] = values
            return spread(padded)

        ids_BL = tokens("input_ids")
        lengths_B = spread(np.array([len(ids) for ids in columns["input_ids"]], np.int32))
        segments_BL = (np.arange(length) < lengths_B[:, None]).astype(np.int32)
        positions_BL = np.arange(length, dtype=np.int32) * segments_BL
        types_BL = (
            tokens("token_type_ids") if "token_type_ids" in columns else np.zeros_like(ids_BL)
        )
        return Batch(
            tokens=Tokens(ids_BL, segments_BL, positions_BL, types_BL),
            targets=jax.tree.map(spread, self.collate(columns, length)),
            weights_B=((rows >= 0) & self.mine).astype(np.float32),
            rows_B=rows.astype(np.int32),
        )


def stream(source: BatchSource, start: int, sharding: NamedSharding) -> Iterator[Batch]:
    """Batches on the devices from number `start` on; grain assembles them ahead of time."""
    numbers = grain.MapDataset.range(start, len(source)).map(source.__getitem__)
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=8)
    for batch in numbers.to_iter_dataset(options):
        yield put(batch, sharding)


def put(batch: Batch, sharding: NamedSharding) -> Batch:
    """A host batch as global arrays whose rows are split as `sharding` says."""

    def place(x: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(place, batch)


def rows_here(batch_size: int, sharding: NamedSharding) -> np.ndarray:
    """bool [batch_size]: the rows that this process's devices hold."""
    mine = np.zeros(batch_size, bool)
    for index in sharding.addressable_devices_indices_map((batch_size,)).values():
        mine[index] = True
    return mine
