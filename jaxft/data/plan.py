"""Which examples make up update k, and how they lie in rows: a function of (lengths, seed, k).

Neither devices, hosts nor accumulation change which examples an update sees, and update k needs no
iterator state. R rows, M examples a row.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from math import ceil, lcm
from typing import Literal

import numpy as np

from jaxft.data.packing import first_fit, pack_all

Packing = Literal["batch", "rows", "none"]
LENGTHS = 5
"""How many widths `none` uses at most: each costs a compilation."""
MULTIPLE = 8
"""Widths are multiples of this, unless the attention kernel wants more."""
GROUP = 50
"""Batches whose examples are sorted by length together."""
TOGETHER = 1000
"""Batches, of as many epochs as have so many, that are laid out at a time for their shape."""
SAMPLE = 200
"""Of those the ones that widths are tried on: those with the most tokens."""
ATTENTION = 2048
"""About the width at which attention costs a small model as much as all its matrices."""


def padded_lengths(
    batch_lengths: Sequence[int], at_most: int, limit: int, unit: int = MULTIPLE
) -> tuple[int, ...]:
    """The lengths, at most `at_most`, multiples of `unit` or `limit`, that pad batches with these
    longest rows by the fewest tokens.
    """
    rounded = np.minimum(-(-np.asarray(batch_lengths) // unit) * unit, limit)
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


@dataclass(frozen=True, eq=False)
class Plan:
    """The batches of a run.

    `packing` is "batch": the `batch_size` examples of a batch share rows about as wide as the
    longest of all examples, and every batch gets a like share of long and short ones; "rows":
    `batch_size` rows of `max_length`, each as full as examples make it; "none": a row an example,
    in batches of like length, padded to one of few widths.
    """

    lengths: np.ndarray
    """Tokens of each example, int [N]."""
    batch_size: int
    max_length: int
    seed: int | None
    """None: every example once, for evaluation."""
    packing: Packing = "batch"
    epochs: int = 1
    """How many the run has at most: all batches get the same number of rows."""
    counts: tuple[int, ...] = ()
    """Examples of each of the sources that follow each other in `lengths`; empty: there is one."""
    weights: tuple[float, ...] = (1.0,)
    """Of those sources: an epoch is one pass over the first, and of the others what is in
    proportion.
    """
    row_unit: int = 1
    """Rows come in multiples of this, so that devices and micro-batches can share them."""
    width_unit: int = 1
    """What widths must be a multiple of, whatever `max_length` is."""
    widths_at_most: int = LENGTHS
    floor: tuple[int, int, int] = (0, 0, 0)
    """The least rows, examples a row and width, so that splits can share a program."""

    @cached_property
    def items_per_epoch(self) -> int:
        """What `batch_size` counts: examples or, of "rows", rows."""
        return len(self._items(0))

    @property
    def batches_per_epoch(self) -> int:
        return ceil(self.items_per_epoch / self.batch_size)

    def __getitem__(self, k: int) -> tuple[np.ndarray, int]:
        """(example numbers int32 [R, M] with -1 for none, width of the rows)."""
        members_NRM = _epoch(self, k // self.batches_per_epoch)
        members = members_NRM[k % self.batches_per_epoch]
        rows, slots = self.shape
        padded = np.full((rows, slots), -1, np.int32)
        padded[: members.shape[0], : members.shape[1]] = members
        if len(self.widths) == 1:
            return padded, self.widths[0]
        longest = int(self.lengths[members[members >= 0]].max())
        return padded, next(width for width in self.widths if width >= longest)

    def examples(self, k: int) -> int:
        """Examples of batch k."""
        return int((self[k][0] >= 0).sum())

    def tokens(self, k: int) -> int:
        """Real tokens of batch k, over all processes."""
        members, _ = self[k]
        return int(self.lengths[members[members >= 0]].sum())

    @cached_property
    def full(self) -> float:
        """The share of the first batches' tokens that are real."""
        batches = range(min(self.batches_per_epoch, SAMPLE))
        computed = sum(self[k][1] for k in batches) * self.shape[0]
        return sum(self.tokens(k) for k in batches) / computed

    def widths_of(self, start: int, end: int) -> tuple[int, ...]:
        """The widths that batches `start` to `end` use, narrowest first."""
        used: set[int] = set()
        for k in range(start, end):
            used.add(self[k][1])
            if len(used) == len(self.widths):
                break
        return tuple(sorted(used))

    @cached_property
    def shape(self) -> tuple[int, int]:
        """(rows, examples a row) of every batch."""
        if self.packing == "none":
            rows, slots = self.batch_size, 1
        elif self.packing == "rows":
            rows, slots = self.batch_size, self._packed[0].shape[1]
        else:
            width = self.widths[0]
            shapes = [first_fit(lengths_NE, width).shape[1:] for lengths_NE in self._all_lengths()]
            rows, slots = np.max(shapes, axis=0).tolist()
        rows, slots = max(rows, self.floor[0]), max(slots, self.floor[1])
        return ceil(rows / self.row_unit) * self.row_unit, slots

    @cached_property
    def widths(self) -> tuple[int, ...]:
        """The widths of rows, narrowest first; the same for every epoch."""
        limit = self._width(int(self.lengths.max()))
        if self.packing == "rows":
            return (self._width(self.max_length),)
        if self.packing == "batch":
            return (max(self._cheapest(limit), self.floor[2]),)
        members = _epoch(self, 0)[:, :, 0]
        longest = self.lengths[members].max(axis=1)  # a filler (-1) repeats the last example
        return padded_lengths([*longest, limit], self.widths_at_most, limit, self._step)

    @property
    def _step(self) -> int:
        return lcm(MULTIPLE, self.width_unit)

    def _width(self, length: int) -> int:
        """The narrowest width for examples of this length."""
        wide = min(ceil(length / self._step) * self._step, self.max_length)
        return ceil(wide / self.width_unit) * self.width_unit

    def _cheapest(self, longest: int) -> int:
        """The width, not much more than the longest example, whose rows cost the least to
        compute: as many as the batch that is hardest to pack needs, in any epoch.
        """
        lengths_NE = np.concatenate(
            [part[np.argsort(-part.sum(1), kind="stable")[:SAMPLE]] for part in self._all_lengths()]
        )

        def cost(width: int) -> float:
            rows = first_fit(lengths_NE, width).shape[1]
            return rows * width * (1 + width / ATTENTION)

        return min(range(longest, longest + 9 * self._step, self._step), key=cost)

    def _all_lengths(self) -> Iterator[np.ndarray]:
        """Of the examples of all epochs' batches [N, size], some epochs at a time."""
        step = ceil(TOGETHER / self.batches_per_epoch)
        for first in range(0, self.epochs, step):
            epochs = range(first, min(first + step, self.epochs))
            yield np.concatenate([_balanced(self, epoch)[1] for epoch in epochs])

    def _items(self, epoch: int) -> np.ndarray:
        """What an epoch deals out, in no order yet: numbers of examples or, of "rows", of rows."""
        counts = self._packed[1] if self.packing == "rows" else self.counts or (len(self.lengths),)
        first = np.cumsum([0, *counts])
        dealt = [np.arange(counts[0])]
        for i in range(1, len(counts)):
            wanted = round(counts[0] * self.weights[i] / self.weights[0])
            places = np.arange(epoch * wanted, (epoch + 1) * wanted)
            # An endless series of passes over the source, so that every example has its turn.
            passes = {
                p: np.random.default_rng([self.seed or 0, i, p]).permutation(counts[i])
                for p in np.unique(places // max(counts[i], 1)).tolist()
            }
            drawn = [passes[at // counts[i]][at % counts[i]] for at in places.tolist()]
            dealt.append(first[i] + np.asarray(drawn, int))
        return np.concatenate(dealt)

    @cached_property
    def _packed(self) -> tuple[np.ndarray, tuple[int, ...]]:
        """Of "rows": all rows, int32 [all rows, M], and how many each source has; epochs differ in
        their order.
        """
        counts = self.counts or (len(self.lengths),)
        edges = np.cumsum([0, *counts])
        parts = [
            _shifted(pack_all(self.lengths[a:b], self.max_length, self.seed or 0), a)
            for a, b in pairwise(edges.tolist())
        ]
        slots = max(part.shape[1] for part in parts)
        padded = [
            np.pad(part, ((0, 0), (0, slots - part.shape[1])), constant_values=-1) for part in parts
        ]
        return np.concatenate(padded), tuple(len(part) for part in parts)


@lru_cache(maxsize=8)
def _epoch(plan: Plan, epoch: int) -> np.ndarray:
    """Example numbers [batches, R, M] of one pass over the data."""
    if plan.packing == "rows":
        items = plan._items(epoch)
        order = items if plan.seed is None else _random(plan, epoch).permutation(items)
        numbers = _cut(order, plan.batch_size)
        return np.where(numbers[..., None] >= 0, plan._packed[0][numbers], -1)
    if plan.packing == "none":
        return _grouped(plan, epoch)[..., None]
    batches, lengths_NE = _balanced(plan, epoch)
    packed_NRM = first_fit(lengths_NE, plan.widths[0])
    numbers = batches[np.arange(len(batches))[:, None, None], packed_NRM]
    return np.where(packed_NRM >= 0, numbers, -1).astype(np.int32)


def _shifted(members: np.ndarray, by: int) -> np.ndarray:
    return np.where(members >= 0, members + by, -1)


def _random(plan: Plan, epoch: int) -> np.random.Generator:
    return np.random.default_rng([plan.seed or 0, epoch])


def _grouped(plan: Plan, epoch: int) -> np.ndarray:
    """Batches [N, batch_size] of examples of like length, as transformers' length grouping makes
    them; in order of length for evaluation.
    """
    lengths, size, items = plan.lengths, plan.batch_size, plan._items(epoch)
    if plan.seed is None:
        return _cut(items[np.argsort(lengths[items], kind="stable")], size)
    random = _random(plan, epoch)
    order = random.permutation(items)
    groups = [order[i : i + GROUP * size] for i in range(0, len(order), GROUP * size)]
    order = np.concatenate([g[np.argsort(lengths[g], kind="stable")] for g in groups])
    return random.permutation(_cut(order, size))


def _balanced(plan: Plan, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Random batches [N, size] that all have about as many tokens, and the lengths of their
    examples, 0 where there is none: of a group of examples, sorted by length, each batch draws one
    from every stretch.
    """
    lengths, size, random = plan.lengths, plan.batch_size, _random(plan, epoch)
    order = random.permutation(plan._items(epoch))
    whole = len(order) // size * size
    batches = []
    for start in range(0, whole, GROUP * size):
        group = order[start : min(start + GROUP * size, whole)]
        stretches = group[np.argsort(lengths[group], kind="stable")].reshape(size, -1)
        batches.append(random.permuted(stretches, axis=1).T)
    if whole < len(order):
        batches.append(_cut(order[whole:], size))
    dealt = random.permutation(np.concatenate(batches))
    return dealt, np.where(dealt >= 0, lengths[dealt], 0)


def _cut(order: np.ndarray, size: int) -> np.ndarray:
    fillers = np.full(-len(order) % size, -1, order.dtype)
    return np.concatenate([order, fillers]).reshape(-1, size)
