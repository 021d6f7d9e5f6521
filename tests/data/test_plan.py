"""The plan: which examples make up update k, a pure function of lengths, seed and k."""

from itertools import combinations
from typing import Any

import numpy as np
import pytest

from jaxft.data.packing import first_fit
from jaxft.data.plan import ATTENTION, LENGTHS, MULTIPLE, Plan, padded_lengths

LIMIT = 60
SIZES = [(1, 8), (8, 8), (9, 8), (37, 8), (1000, 8), (1000, 16)]
PACKINGS = ("batch", "rows", "none")
EPOCHS = 3
SPREAD = 0.05
"""Deviation of the tokens of balanced batches of 32 over their mean. Seen is 0.04; of random ones,
0.14.
"""
FILL = 0.7
"""Share of tokens that shared rows must hold on average over a run. Seen is 0.79; 0.50 where width
and rows are chosen on the first 200 batches, and one more batch needs one row more.
"""

every_packing = pytest.mark.parametrize("packing", PACKINGS)
every_size = pytest.mark.parametrize(("n", "size"), SIZES)
Laid = tuple[np.ndarray, int]


def lengths(n: int) -> np.ndarray:
    """Tokens per example: a few long ones among short ones, at most LIMIT."""
    draw = np.random.default_rng(n)
    return np.minimum(draw.geometric(0.08, n) + 2, LIMIT)


def lognormal(n: int, seed: int = 0) -> np.ndarray:
    return np.clip(np.random.default_rng(seed).lognormal(3.3, 0.7, n), 3, 256).astype(int)


def plan(n: int, size: int, packing: str = "batch", **changed: Any) -> Plan:
    given = {"lengths": lengths(n), "batch_size": size, "max_length": LIMIT, "seed": 3}
    return Plan(**given | {"packing": packing, "epochs": EPOCHS} | changed)


def epoch(made: Plan, number: int) -> list[Laid]:
    return [made[number * made.batches_per_epoch + i] for i in range(made.batches_per_epoch)]


def members(made: Plan, k: int) -> list[int]:
    return sorted(made[k][0][made[k][0] >= 0].tolist())


def rows(laid: Laid) -> list[list[int]]:
    """The examples of each row that has any."""
    return [row[row >= 0].tolist() for row in laid[0] if (row >= 0).any()]


@pytest.mark.parametrize("seed", [3, None])
@every_packing
@every_size
def test_every_example_comes_once_an_epoch_and_no_row_is_too_full(n, size, packing, seed):
    made = plan(n, size, packing, seed=seed)
    for number in range(EPOCHS):
        batches = epoch(made, number)
        assert sorted(i for laid in batches for row in rows(laid) for i in row) == list(range(n))
        for members_RM, width in batches:
            assert (members_RM >= 0).any(), "no batch is all padding"
            assert np.where(members_RM >= 0, made.lengths[members_RM], 0).sum(1).max() <= width


@every_packing
@every_size
def test_all_batches_of_a_run_have_one_shape_and_few_widths(n, size, packing):
    made = plan(n, size, packing)
    batches = [laid for number in range(EPOCHS) for laid in epoch(made, number)]
    assert {members_RM.shape for members_RM, _ in batches} == {made.shape}
    used = {width for _, width in batches}
    assert used <= set(made.widths)
    assert len(made.widths) <= (LENGTHS if packing == "none" else 1)
    assert made.widths_of(0, len(batches)) == tuple(sorted(used))
    assert made.widths_of(1, 2) == (made[1][1],)


@every_size
@pytest.mark.parametrize("packing", ["batch", "none"])
@pytest.mark.parametrize("row_unit", [1, 8])
def test_a_batch_holds_batch_size_examples_but_for_one_in_an_epoch(n, size, packing, row_unit):
    made = plan(n, size, packing, row_unit=row_unit)
    for number in range(EPOCHS):
        counts = sorted((laid[0] >= 0).sum() for laid in epoch(made, number))
        assert counts == sorted([size] * (n // size) + [n % size] * bool(n % size))
    assert made.examples(0) == len(members(made, 0))


def test_packed_rows_make_batches_of_batch_size_rows():
    made = plan(1000, 8, "rows")
    counts = sorted(len(rows(laid)) for laid in epoch(made, 0))
    assert counts[1:] == [8] * (len(counts) - 1)
    assert made.widths == (LIMIT,)
    filled = sum(made.tokens(k) for k in range(made.batches_per_epoch))
    assert filled > 0.9 * LIMIT * (8 * (len(counts) - 1) + counts[0])


@every_packing
def test_update_k_has_the_same_examples_however_the_plan_is_asked(packing):
    one = plan(100, 8, packing)
    changes: list[dict[str, Any]] = [{}, {"row_unit": 8}, {"row_unit": 3}, {"floor": (9, 30, 80)}]
    for changed in [*changes, {"epochs": 7, "row_unit": 2}]:
        other = plan(100, 8, packing, **changed)
        for k in (20, 3, 11, 0):  # in any order
            assert members(one, k) == members(other, k)
    # Only the width depends on how long the run is, and the floor, and so where examples lie.
    assert rows(one[20]) == rows(plan(100, 8, packing)[20])


@pytest.mark.parametrize("packing", ["rows", "none"])
def test_a_batch_far_ahead_needs_none_of_those_before_it(packing):
    assert members(plan(100, 8, packing), 10**6) == members(plan(100, 8, packing), 10**6)


@every_packing
@pytest.mark.parametrize("unit", [2, 3, 8, 16])
def test_a_row_unit_only_adds_empty_rows(packing, unit):
    one, shared = plan(100, 8, packing), plan(100, 8, packing, row_unit=unit)
    (r, m), (more, same) = one.shape, shared.shape
    assert more % unit == 0
    assert r <= more < r + unit
    assert same == m
    assert shared.widths == one.widths
    for k in range(2 * one.batches_per_epoch):
        members_RM, width = shared[k]
        assert np.array_equal(members_RM[:r], one[k][0])
        assert (members_RM[r:] == -1).all()
        assert width == one[k][1]


@every_packing
def test_epochs_and_seeds_differ(packing):
    made = plan(1000, 8, packing)

    def batches(made: Plan, number: int) -> set[tuple[int, ...]]:
        per_epoch = made.batches_per_epoch
        return {tuple(members(made, number * per_epoch + i)) for i in range(per_epoch)}

    assert batches(made, 0) != batches(made, 1)
    assert batches(made, 0) != batches(plan(1000, 8, packing, seed=4), 0)


@pytest.mark.parametrize("packing", ["batch", "rows"])
def test_every_batch_has_about_as_many_tokens_as_the_others(packing):
    given = {"lengths": lognormal(5000), "max_length": 256, "seed": 3, "packing": packing}
    made = Plan(**given, batch_size=32)
    full = np.array(sorted(map(made.tokens, range(made.batches_per_epoch)))[1:])
    assert full.std() < SPREAD * full.mean()
    order = np.random.default_rng(0).permutation(5000)[: 5000 // 32 * 32]
    random = made.lengths[order].reshape(-1, 32).sum(1)
    assert random.std() > 2 * SPREAD * random.mean(), "there is something to balance"


def test_every_batch_gets_long_and_short_examples():
    """Else loss and gradient would swing with the lengths."""
    made = Plan(lognormal(5000), 32, 256, seed=3)
    median = np.median(made.lengths)
    full = [k for k in range(made.batches_per_epoch) if made.examples(k) == 32]
    long = [(made.lengths[members(made, k)] > median).sum() for k in full]
    assert max(long) - min(long) <= 2


@pytest.mark.parametrize("size", [16, 32])
@pytest.mark.parametrize("draw", [lognormal, lengths])
def test_shared_rows_cost_the_least_and_are_well_filled_whatever_the_seed(draw, size):
    """A single batch that needs one more row than the others adds that row to all of them."""
    limit = 256 if draw is lognormal else 128
    for seed in range(8):
        epochs = 1 + 2 * (seed % 2)
        made = Plan(draw(20_000), size, limit, seed=seed, epochs=epochs)
        computed = made.batches_per_epoch * made.shape[0] * made.widths[0]
        assert made.lengths.sum() / computed > FILL
        batches = [members(made, k) for k in range(epochs * made.batches_per_epoch)]
        lengths_NE = np.array([made.lengths[batch] for batch in batches if len(batch) == size])
        longest = min(limit, -(-made.lengths.max() // MULTIPLE) * MULTIPLE)
        costs = {
            width: first_fit(lengths_NE, width).shape[1] * width * (1 + width / ATTENTION)
            for width in range(longest, longest + 9 * MULTIPLE, MULTIPLE)
        }
        assert costs[made.widths[0]] == min(costs.values())


def test_many_epochs_are_laid_out_together(monkeypatch):
    calls = []

    def counted(lengths_NE, width):
        calls.append(width)
        return first_fit(lengths_NE, width)

    monkeypatch.setattr("jaxft.data.plan.first_fit", counted)
    made = plan(100, 8, epochs=300)
    rows_at_most, slots_at_most = made.shape
    assert len(calls) < 20
    for k in range(0, 300 * made.batches_per_epoch, 97):
        assert made[k][0].shape == (rows_at_most, slots_at_most)


def test_shared_rows_are_little_wider_than_the_longest_example():
    made = Plan(lognormal(5000), 32, 256, seed=3)
    assert made.lengths.max() <= made.widths[0] <= made.lengths.max() + 9 * MULTIPLE


def test_batches_of_an_epoch_do_not_come_sorted_by_length():
    padded = [width for _, width in epoch(plan(1000, 8, "none"), 0)]
    assert (np.diff(padded) < 0).mean() > 0.25
    assert abs(np.corrcoef(padded, range(len(padded)))[0, 1]) < 0.3


def test_grouping_by_length_pads_less_than_half_as_much():
    made = plan(1000, 8, "none")
    grouped = sum(8 * width for _, width in epoch(made, 0)) - made.lengths.sum()
    order = np.random.default_rng(0).permutation(1000).reshape(-1, 8)
    assert grouped < 0.5 * (8 * made.lengths[order].max(1).sum() - made.lengths.sum())


def test_widths_of_unshared_rows_are_multiples():
    widths = plan(1000, 8, "none").widths
    assert all(width % MULTIPLE == 0 or width == LIMIT for width in widths)


@every_packing
def test_real_tokens_are_counted_without_fillers(packing):
    made = plan(37, 8, packing)
    assert sum(made.tokens(k) for k in range(made.batches_per_epoch)) == made.lengths.sum()


@pytest.mark.parametrize("packing", ["batch", "none"])
def test_a_floor_widens_rows_and_adds_empty_ones(packing):
    made = plan(37, 8, packing, floor=(11, 30, 96), row_unit=4)
    assert made.shape == (12, 30)
    assert made.widths[0] == 96 or packing == "none"
    assert sorted(i for laid in epoch(made, 0) for row in rows(laid) for i in row) == [*range(37)]


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
