"""First fit: no row too full, no example lost or moved to another group, little room wasted."""

import numpy as np
import pytest

from jaxft.data.packing import first_fit, pack_all

WASTE = 0.1
"""Share of the tokens that rows of 256 may leave empty. Seen is 0.01 at most."""


def groups(n: int, size: int, width: int, seed: int = 0) -> np.ndarray:
    """Lengths [n, size] from 0 (no example) to the width."""
    return np.random.default_rng(seed).integers(0, width + 1, (n, size))


def one_by_one(lengths: list[int], width: int) -> list[list[int]]:
    """First-fit decreasing as a textbook has it: the examples of each row."""
    rows: list[list[int]] = []
    for example in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if lengths[example]:
            fits = [r for r in rows if sum(lengths[i] for i in r) + lengths[example] <= width]
            (fits[0] if fits else rows.append([]) or rows[-1]).append(example)
    return rows


def rows_of(packed_RM: np.ndarray) -> list[list[int]]:
    return [row[row >= 0].tolist() for row in packed_RM if (row >= 0).any()]


@pytest.mark.parametrize("width", [1, 7, 60])
@pytest.mark.parametrize("size", [1, 8, 50])
def test_each_group_lies_as_first_fit_decreasing_puts_it_alone(size, width):
    lengths_NE = groups(20, size, width)
    packed_NRM = first_fit(lengths_NE, width)
    assert packed_NRM.dtype == np.int32
    for lengths, packed in zip(lengths_NE.tolist(), packed_NRM, strict=True):
        assert rows_of(packed) == one_by_one(lengths, width)


def test_no_row_is_overfilled_and_every_example_lies_in_one_place():
    lengths_NE = groups(30, 40, 64)
    for lengths, packed in zip(lengths_NE, first_fit(lengths_NE, 64), strict=True):
        rows = rows_of(packed)
        assert max(lengths[row].sum() for row in rows) <= 64
        assert sorted(i for row in rows for i in row) == np.flatnonzero(lengths).tolist()


def test_examples_of_a_row_come_first_and_empty_rows_last():
    for packed_RM in first_fit(groups(30, 40, 64), 64):
        held_RM = packed_RM >= 0
        assert (np.diff(held_RM.astype(int), axis=1) <= 0).all()
        assert (np.diff(held_RM.any(axis=1).astype(int)) <= 0).all()


def test_no_shape_is_larger_than_the_fullest_group_needs():
    packed_NRM = first_fit(groups(30, 40, 64), 64)
    assert (packed_NRM >= 0).any(axis=(0, 2)).all()
    assert (packed_NRM >= 0).any(axis=(0, 1)).all()


def test_a_length_of_0_is_no_example():
    packed = first_fit(np.array([[0, 5, 0, 3], [0, 0, 0, 2]]), 8)
    assert packed.tolist() == [[[1, 3]], [[3, -1]]]


def test_an_example_as_long_as_a_row_is_alone_in_it():
    assert first_fit(np.array([[8, 1, 8]]), 8).tolist() == [[[0], [2], [1]]]


@pytest.mark.parametrize("n", [1, 1023, 1024, 1025, 5000])
def test_rows_of_a_data_set_hold_every_example_once_and_waste_little(n):
    lengths = np.clip(np.random.default_rng(n).lognormal(3.3, 0.7, n), 3, 256).astype(int)
    rows_RM = pack_all(lengths, 256, seed=0)
    real = rows_RM[rows_RM >= 0]
    assert sorted(real) == list(range(n))
    tokens_R = np.where(rows_RM >= 0, lengths[rows_RM], 0).sum(1)
    assert tokens_R.min() > 0
    assert tokens_R.max() <= 256
    if n > 1:
        assert 1 - lengths.sum() / (256 * len(rows_RM)) < WASTE


def test_the_seed_decides_which_examples_of_a_data_set_meet():
    lengths = groups(1, 4000, 99)[0] + 1
    one, same, other = (rows_of(pack_all(lengths, 100, seed)) for seed in (0, 0, 1))
    assert one == same
    assert set(map(frozenset, one)) != set(map(frozenset, other))
