"""Host batches: what the plan says, laid into arrays, and only the rows that a host needs."""

import datasets
import numpy as np
import pytest
import runs

from jaxft.data.batches import BatchSource, Layout, rows_here, stream
from jaxft.data.plan import Plan

LENGTHS = np.arange(2, 12)


class Fixed(Plan):
    """Batches of four examples or fewer, two to a row of 16."""

    shape, widths = (3, 2), (16,)

    def __getitem__(self, k: int) -> tuple[np.ndarray, int]:
        batches = [[[3, 0], [5, 2], [-1, -1]], [[8, -1], [4, 6], [1, 7]], [[9, -1], [-1, -1]] * 2]
        return np.array(batches[k][:3], np.int32), 16


@pytest.fixture
def rows() -> datasets.Dataset:
    """Ten rows of i + 2 tokens, each the row's number from 1, and a target of its tenfold."""
    ids = [[i + 1] * (i + 2) for i in range(10)]
    types = [[0] * (i + 1) + [1] for i in range(10)]
    target = [10 * (i + 1) for i in range(10)]
    return datasets.Dataset.from_dict({"input_ids": ids, "token_type_ids": types, "target": target})


def targets(layout: Layout) -> np.ndarray:
    return layout.examples(np.asarray(layout.columns["target"], np.int32))


def source(rows: datasets.Dataset, mine: list[int] | None = None) -> BatchSource:
    made = Fixed(LENGTHS, batch_size=4, max_length=16, seed=None)
    return BatchSource(made, rows, targets, 3, np.array(mine or [1, 1, 1], bool))


def test_examples_of_a_row_follow_each_other_and_padding_comes_last(rows):
    batch = source(rows)[0]
    ids, segments, positions, types = (part.tolist() for part in batch.tokens)
    # Example 3 has five tokens, 0 two, 5 seven and 2 four.
    assert ids == [[4] * 5 + [1] * 2 + [0] * 9, [6] * 7 + [3] * 4 + [0] * 5, [0] * 16]
    assert segments == [[1] * 5 + [2] * 2 + [0] * 9, [1] * 7 + [2] * 4 + [0] * 5, [0] * 16]
    assert positions[0] == [0, 1, 2, 3, 4, 0, 1] + [0] * 9
    assert positions[1] == [0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3] + [0] * 5
    assert types[0] == [0, 0, 0, 0, 1, 0, 1] + [0] * 9
    assert batch.targets.tolist() == [[40, 10], [60, 30], [0, 0]]
    assert batch.weights_BM.tolist() == [[1, 1], [1, 1], [0, 0]]
    assert batch.rows_BM.tolist() == [[3, 0], [5, 2], [-1, -1]]


def test_arrays_have_the_types_that_models_read(rows):
    batch = source(rows)[0]
    assert {part.dtype for part in batch.tokens} == {np.dtype(np.int32)}
    assert (batch.weights_BM.dtype, batch.rows_BM.dtype) == (np.float32, np.int32)


def test_a_place_without_an_example_weighs_nothing(rows):
    batch = source(rows)[1]
    assert batch.weights_BM.tolist() == [[1, 0], [1, 1], [1, 1]]
    assert batch.targets.tolist() == [[90, 0], [50, 70], [20, 80]]
    assert batch.tokens.segments_BL.max(axis=1).tolist() == [1, 2, 2]


def test_texts_without_types_have_types_of_0(rows):
    assert not source(rows.remove_columns("token_type_ids"))[0].tokens.types_BL.any()


@pytest.mark.parametrize("k", [0, 1, 2])
def test_the_parts_that_hosts_fetch_make_up_the_batch(rows, k):
    whole = source(rows)[k]
    for mine in ([1, 0, 0], [0, 1, 1]):
        part = source(rows, mine)[k]
        held = np.array(mine, bool)
        assert part.rows_BM.tolist() == whole.rows_BM.tolist()
        for one, all_of_it in zip(
            (*part.tokens, part.targets, part.weights_BM),
            (*whole.tokens, whole.targets, whole.weights_BM),
            strict=True,
        ):
            assert one.shape == all_of_it.shape
            assert np.array_equal(one[held], all_of_it[held])
            assert not one[~held].any(), "nothing is fetched for the rows of others"


def test_a_batch_to_compile_with_has_the_shapes_of_a_real_one(rows):
    made = source(rows)
    real, empty = (
        [*batch.tokens, batch.targets, batch.weights_BM, batch.rows_BM]
        for batch in (made[1], made.empty(16))
    )
    assert [(x.shape, x.dtype) for x in real] == [(x.shape, x.dtype) for x in empty]
    assert not made.empty(16).weights_BM.any()


def test_an_example_that_is_too_long_for_its_row_is_no_silent_cut(rows):
    layout = Layout(rows[[9, 8]], np.array([[True, True]]), 16)
    with pytest.raises(ValueError, match="broadcast"):
        layout.tokens(layout.columns["input_ids"])


class Counted:
    """A data set that notes which rows were asked for."""

    def __init__(self, rows):
        self.rows, self.asked = rows, []

    def __getitem__(self, index):
        self.asked.append(np.asarray(index))
        return self.rows[index]


def test_a_host_asks_for_its_own_examples_alone(rows):
    counted = Counted(rows)
    source(counted, [0, 1, 0])[1]
    assert [index.tolist() for index in counted.asked] == [[4, 6]]


@pytest.mark.parametrize("packing", ["batch", "rows", "none"])
def test_pitfall_13_batch_k_is_made_without_the_batches_before_it(tiny_bert_folder, packing):
    experiment, splits, _ = runs.assembled(runs.finished(tiny_bert_folder).keys)
    split = splits["train"]
    first = 990 if packing == "batch" else 999_990
    plan = Plan(
        split.lengths, runs.BATCH, runs.LENGTH, seed=0, packing=packing, epochs=200, row_unit=8
    )
    counted = Counted(split.features)
    mine = rows_here(plan.shape[0], experiment.rows)
    source = BatchSource(plan, counted, experiment.task.collate, 10**6, mine)
    batch = next(stream(source, first, experiment.rows))
    assert np.array_equal(batch.rows_BM, plan[first][0])
    assert len(counted.asked) <= 10, "only what is prefetched"
