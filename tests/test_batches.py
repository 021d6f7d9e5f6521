"""The plan: which rows make up update k, a pure function of lengths, seed and k."""

from itertools import combinations
from typing import Any

import datasets
import numpy as np
import pytest
import runs

from jaxft.data.batches import (
    LENGTHS,
    MULTIPLE,
    BatchSource,
    Plan,
    padded_lengths,
    rows_here,
    stream,
)

LIMIT = 60
SIZES = [(1, 8), (8, 8), (9, 8), (37, 8), (1000, 8), (1000, 16)]
KINDS = {
    "grouped": {"seed": 3},
    "shuffled": {"seed": 3, "group_by_length": False},
    "in order": {"seed": None},
}


def lengths(n: int) -> np.ndarray:
    """Tokens per row: a few long ones among short ones, at most LIMIT."""
    draw = np.random.default_rng(n)
    return np.minimum(draw.geometric(0.08, n) + 2, LIMIT)


def plan(n: int, size: int, kind: str = "grouped", **changed: Any) -> Plan:
    return Plan(
        **{"lengths": lengths(n), "batch_size": size, "max_length": LIMIT} | KINDS[kind] | changed
    )


def epoch(made: Plan, number: int) -> list[tuple[np.ndarray, int]]:
    return [made[number * made.batches_per_epoch + i] for i in range(made.batches_per_epoch)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "size"), SIZES)
def test_every_row_comes_once_an_epoch_and_fits_its_padded_length(n, size, kind):
    made = plan(n, size, kind)
    for number in range(3):
        batches = epoch(made, number)
        rows = np.concatenate([rows for rows, _ in batches])
        assert sorted(rows[rows >= 0]) == list(range(n))
        assert len(rows) == made.batches_per_epoch * size
        for rows, length in batches:
            real = rows[rows >= 0]
            assert len(real), "no batch is all padding"
            assert made.lengths[real].max() <= length <= LIMIT


@pytest.mark.parametrize("kind", KINDS)
def test_padded_shapes_are_few_and_the_same_in_every_epoch(kind):
    made = plan(1000, 8, kind)
    seen = {length for number in range(4) for _, length in epoch(made, number)}
    assert seen <= set(made.shapes)
    assert len(made.shapes) <= LENGTHS
    assert all(length % MULTIPLE == 0 or length == LIMIT for length in made.shapes)


@pytest.mark.parametrize("kind", KINDS)
def test_a_plan_depends_on_lengths_seed_and_number_alone(kind):
    one, other = plan(100, 8, kind), plan(100, 8, kind)
    for k in [57, 3, 10_000, 0]:  # in any order, far ahead
        assert np.array_equal(one[k][0], other[k][0])
        assert one[k][1] == other[k][1]


def test_epochs_and_seeds_differ():
    made = plan(1000, 8)
    first = [tuple(rows) for rows, _ in epoch(made, 0)]
    second = [tuple(rows) for rows, _ in epoch(made, 1)]
    assert set(first) != set(second)
    assert first != [tuple(rows) for rows, _ in epoch(plan(1000, 8, seed=4), 0)]


def test_batches_of_an_epoch_do_not_come_sorted_by_length():
    made = plan(1000, 8)
    padded = [length for _, length in epoch(made, 0)]
    assert padded != sorted(padded)
    assert abs(np.corrcoef(padded, range(len(padded)))[0, 1]) < 0.3


def test_grouping_by_length_pads_less_than_half_as_much():
    def padding(made: Plan) -> int:
        return sum(len(rows) * length for rows, length in epoch(made, 0)) - made.lengths.sum()

    assert padding(plan(1000, 8)) < 0.5 * padding(plan(1000, 8, "shuffled"))


def test_real_tokens_are_counted_without_fillers():
    made = plan(37, 8)
    assert sum(made.tokens(k) for k in range(made.batches_per_epoch)) == made.lengths.sum()


def test_padded_lengths_waste_the_fewest_tokens():
    batches = np.random.default_rng(0).integers(1, 60, 30)
    rounded = np.minimum(-(-batches // MULTIPLE) * MULTIPLE, LIMIT)
    sizes = sorted(set(rounded.tolist()))

    def cost(chosen: tuple[int, ...]) -> int:
        return sum(min(length for length in chosen if length >= size) for size in rounded)

    for at_most in (1, 2, 3, 5):
        below = [(*c, sizes[-1]) for n in range(at_most) for c in combinations(sizes[:-1], n)]
        found = padded_lengths(batches, at_most, LIMIT)
        assert len(found) <= at_most
        assert cost(found) == min(map(cost, below))


@pytest.fixture
def rows() -> datasets.Dataset:
    """Ten rows of i + 2 tokens, each the row's number, and a target of its tenfold."""
    ids = [[i + 1] * (i + 2) for i in range(10)]
    types = [[0] * (i + 1) + [1] for i in range(10)]
    target = [10 * (i + 1) for i in range(10)]
    return datasets.Dataset.from_dict({"input_ids": ids, "token_type_ids": types, "target": target})


def source(rows: datasets.Dataset, mine: np.ndarray) -> BatchSource:
    made = Plan(np.arange(2, 12), batch_size=4, max_length=LIMIT, seed=None)
    return BatchSource(made, rows, lambda columns, length: np.asarray(columns["target"]), 100, mine)


def test_a_batch_holds_its_rows_padded_on_the_right(rows):
    batch = source(rows, np.ones(4, bool))[1]  # rows 4 to 7, of 6 to 9 tokens
    assert batch.rows_B.tolist() == [4, 5, 6, 7]
    assert batch.tokens.ids_BL.shape == (4, 16)
    for row, ids, segments, positions, types in zip(batch.rows_B, *batch.tokens, strict=True):
        n = row + 2
        assert ids.tolist() == [row + 1] * n + [0] * (16 - n)
        assert segments.tolist() == [1] * n + [0] * (16 - n)
        assert positions.tolist() == [*range(n)] + [0] * (16 - n)
        assert types.tolist() == [0] * (n - 1) + [1] + [0] * (16 - n)
    assert batch.targets.tolist() == [50, 60, 70, 80]
    assert batch.weights_B.tolist() == [1, 1, 1, 1]


def test_the_last_partial_batch_is_filled_with_rows_of_weight_0(rows):
    batch = source(rows, np.ones(4, bool))[2]
    assert batch.rows_B.tolist() == [8, 9, -1, -1]
    assert batch.weights_B.tolist() == [1, 1, 0, 0]
    assert not batch.tokens.segments_BL[2:].any()
    assert not batch.targets[2:].any()


@pytest.mark.parametrize("k", [0, 1, 2])
def test_the_parts_that_hosts_fetch_make_up_the_batch(rows, k):
    whole = source(rows, np.ones(4, bool))[k]
    parts = [source(rows, np.array(mine, bool))[k] for mine in ([1, 1, 0, 0], [0, 0, 1, 1])]
    for i, part in enumerate(parts):
        held = slice(2 * i, 2 * i + 2)
        assert part.rows_B.tolist() == whole.rows_B.tolist()
        assert part.tokens.ids_BL.shape == whole.tokens.ids_BL.shape
        assert np.array_equal(part.tokens.ids_BL[held], whole.tokens.ids_BL[held])
        assert np.array_equal(part.targets[held], whole.targets[held])
        assert np.array_equal(part.weights_B[held], whole.weights_B[held])


def test_a_batch_to_compile_with_has_the_shapes_of_a_real_one(rows):
    made = source(rows, np.ones(4, bool))
    real, empty = made[1], made.empty(16)
    assert [x.shape for x in (*real.tokens, real.targets, real.weights_B, real.rows_B)] == [
        x.shape for x in (*empty.tokens, empty.targets, empty.weights_B, empty.rows_B)
    ]
    assert [x.dtype for x in (*real.tokens, real.targets, real.weights_B)] == [
        x.dtype for x in (*empty.tokens, empty.targets, empty.weights_B)
    ]
    assert not empty.weights_B.any()


def test_pitfall_13_batch_k_is_made_without_the_batches_before_it(tiny_bert_folder):
    experiment, splits, _ = runs.assembled(runs.finished(tiny_bert_folder).keys)

    class Counted:
        """A data set that notes which rows were asked for."""

        def __init__(self, rows):
            self.rows, self.asked = rows, []

        def __getitem__(self, index):
            self.asked.append(np.asarray(index))
            return self.rows[index]

    split = splits["train"]
    plan = Plan(split.lengths, runs.BATCH, runs.LENGTH, seed=0)
    counted = Counted(split.features)
    mine = rows_here(runs.BATCH, experiment.rows)
    source = BatchSource(plan, counted, experiment.task.collate, 10**6, mine)
    batch = next(stream(source, 999_990, experiment.rows))
    assert np.array_equal(batch.rows_B, plan[999_990][0])
    assert len(counted.asked) <= 10, "only what is prefetched"
