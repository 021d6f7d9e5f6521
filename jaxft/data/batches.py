"""Host batches by number: what the plan says, as arrays, on the devices.

R rows, M examples a row, L tokens a row, E examples fetched.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import datasets
import grain
import jax
import numpy as np
from jax.sharding import NamedSharding

from jaxft.data.plan import Plan
from jaxft.nn.tokens import Batch, Tokens


@dataclass(frozen=True)
class Layout:
    """The examples of a batch, their columns, and where they lie."""

    columns: Mapping[str, Sequence]
    """By name, the values of E examples."""
    members_RM: np.ndarray
    """bool: where those lie, in the order of the columns."""
    width: int

    @cached_property
    def _spans(self) -> list[tuple[int, int, int]]:
        """(row, first token, tokens) of each example; they follow each other without a gap."""
        spans, ends = [], np.zeros(len(self.members_RM), int)
        for row, ids in zip(
            np.nonzero(self.members_RM)[0], self.columns["input_ids"], strict=False
        ):
            spans.append((int(row), int(ends[row]), len(ids)))
            ends[row] += len(ids)
        return spans

    def tokens(self, values: Sequence[Any] | np.ndarray) -> np.ndarray:
        """int32 [R, L]: of each example a number per token, or one for all; 0 elsewhere."""
        laid = np.zeros((len(self.members_RM), self.width), np.int32)
        for (row, start, length), value in zip(self._spans, values, strict=False):
            laid[row, start : start + length] = value
        return laid

    def examples(self, values_E: np.ndarray) -> np.ndarray:
        """[R, M, ...]: a value per example, 0 where there is none."""
        laid = np.zeros((*self.members_RM.shape, *values_E.shape[1:]), values_E.dtype)
        laid[self.members_RM] = values_E[: len(self._spans)]
        return laid

    @property
    def segments_RL(self) -> np.ndarray:
        """Which example of its row a token belongs to, from 1; 0 is padding."""
        _, slots = np.nonzero(self.members_RM)
        return self.tokens(slots + 1)

    @property
    def positions_RL(self) -> np.ndarray:
        return self.tokens([range(length) for _, _, length in self._spans])


@dataclass(frozen=True)
class BatchSource:
    """Batches by number: examples follow each other in their rows, padding comes last.

    Only the rows in `mine` are fetched and filled: the ones that this process's devices hold.
    """

    plan: Plan
    dataset: datasets.Dataset
    collate: Callable[[Layout], Any]
    """A task's targets; every leaf has R rows."""
    count: int
    mine: np.ndarray
    """bool [R]"""

    def __len__(self) -> int:
        return self.count

    def empty(self, width: int) -> Batch:
        """A batch of this width without examples, to compile with."""
        return self._assemble(np.full(self.plan.shape, -1, np.int32), width)

    def __getitem__(self, k: int) -> Batch:
        return self._assemble(*self.plan[int(k)])

    def _assemble(self, members_RM: np.ndarray, width: int) -> Batch:
        held_RM = (members_RM >= 0) & self.mine[:, None]
        fetched = members_RM[held_RM]
        # Where there are none, one example still gives the shapes of the targets.
        columns = self.dataset[fetched if len(fetched) else [int(self.plan.lengths.argmin())]]
        layout = Layout(columns, held_RM, width)
        ids_RL = layout.tokens(columns["input_ids"])
        types = columns.get("token_type_ids")
        return Batch(
            tokens=Tokens(
                ids_RL,
                layout.segments_RL,
                layout.positions_RL,
                np.zeros_like(ids_RL) if types is None else layout.tokens(types),
            ),
            targets=self.collate(layout),
            weights_BM=held_RM.astype(np.float32),
            rows_BM=members_RM.astype(np.int32),
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


def rows_here(rows: int, sharding: NamedSharding) -> np.ndarray:
    """bool [rows]: the rows that this process's devices hold."""
    mine = np.zeros(rows, bool)
    for index in sharding.addressable_devices_indices_map((rows,)).values():
        mine[index] = True
    return mine
