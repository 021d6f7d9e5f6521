"""Examples that share rows are what they are alone: their logits, their loss, their gradients.

E examples, R rows, M examples a row, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import datasets
import jax
import numpy as np
import pytest
from parity import CASES, LABELS, Pair, assert_close, tiny

from jaxft.data.batches import BatchSource
from jaxft.data.plan import Plan
from jaxft.nn.tokens import Batch
from jaxft.tasks.classify import Task

SUM_RTOL = 2e-6
"""Relative difference of a sum of losses that is added up in another order. Seen is 2e-7."""
EXAMPLES, BATCH, LIMIT = 40, 12, 14
TASK = Task("single_label_classification", tuple("abc"), (0.5, 2.0, 1.5), 0.1)
"""No two classes weigh the same, so that a loss at a wrong place would show."""


@pytest.fixture(scope="module", params=CASES)
def pair(request) -> Pair:
    """A random model of each family; parity.py holds `assert_close` and its tolerance."""
    return Pair.of(tiny(request.param, **CASES[request.param]))


@pytest.fixture(scope="module")
def examples() -> datasets.Dataset:
    draw = np.random.default_rng(0)
    lengths = draw.integers(1, LIMIT + 1, EXAMPLES)
    return datasets.Dataset.from_dict(
        {
            "input_ids": [draw.integers(3, 64, n).tolist() for n in lengths],
            "target": draw.integers(0, LABELS, EXAMPLES).tolist(),
        }
    )


@dataclass(frozen=True)
class Given:
    """A plan of one batch."""

    members_RM: np.ndarray
    width: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.members_RM.shape

    def __getitem__(self, k: int) -> tuple[np.ndarray, int]:
        return self.members_RM, self.width


def batch(examples: datasets.Dataset, members_RM: Sequence, width: int) -> Batch:
    plan: Any = Given(np.asarray(members_RM, np.int32), width)
    every = np.ones(len(members_RM), bool)
    return BatchSource(plan, examples, TASK.collate, 1, every)[0]


def plan(examples: datasets.Dataset, packing: str = "batch") -> Plan:
    lengths = np.array([len(ids) for ids in examples["input_ids"]])
    return Plan(lengths, BATCH, LIMIT, seed=1, packing=packing)


def alone(examples: datasets.Dataset, numbers: np.ndarray) -> Batch:
    return batch(examples, numbers[numbers >= 0].reshape(-1, 1), LIMIT)


def outputs(pair: Pair, made: Batch) -> dict[int, np.ndarray]:
    """Logits by the number of the example."""
    found = jax.jit(lambda params: TASK.predict(pair.drawn.merge(params), made))(pair.params)
    logits_EC, numbers_E = np.asarray(found["logits_NC"]), made.rows_BM.ravel()
    return {int(i): row for i, row in zip(numbers_E, logits_EC, strict=True) if i >= 0}


@pytest.mark.parametrize("packing", ["batch", "rows"])
def test_shared_rows_give_each_example_the_logits_it_has_alone(pair, examples, packing):
    made = plan(examples, packing)
    for k in range(2):
        members_RM, width = made[k]
        assert (members_RM[:, 1] >= 0).any(), "rows are shared"
        packed = outputs(pair, batch(examples, members_RM, width))
        single = outputs(pair, alone(examples, members_RM))
        assert packed.keys() == single.keys()
        for i, logits_C in single.items():
            assert_close(packed[i], logits_C, f"logits of example {i}")


def test_shared_rows_give_the_loss_and_the_gradients_of_rows_of_one_example(pair, examples):
    members_RM, width = plan(examples)[0]
    members_RM = np.pad(members_RM, ((0, 2), (0, 1)), constant_values=-1)  # places that are empty

    @partial(jax.jit, static_argnums=1)
    def compute(params: Any, packed: bool) -> Any:
        made = batch(examples, members_RM, width) if packed else alone(examples, members_RM)
        loss = lambda params: TASK.loss(pair.drawn.merge(params), made, None)  # noqa: E731
        return jax.value_and_grad(loss, has_aux=True)(params)

    (ours, theirs) = (compute(pair.params, packed) for packed in (True, False))
    np.testing.assert_allclose(ours[0], theirs[0], rtol=SUM_RTOL)
    ours, theirs = pair.named(ours[1]), pair.named(theirs[1])
    largest = max(np.abs(gradient).max() for gradient in theirs.values())
    for name, gradient in theirs.items():
        # Of a key's bias, which has no gradient, rounding is all there is.
        noise = largest if ".key.bias" in name or "k_lin.bias" in name else 0.0
        assert_close(ours[name], gradient, f"gradient of {name}", noise)


def test_a_neighbour_in_the_row_is_not_seen(pair, examples):
    members_RM, width = plan(examples)[0]
    shared = next(row for row in members_RM if row[1] >= 0)
    changed = int(shared[0])  # the longest of its row, before all the others

    def other(example: dict, i: int) -> dict:
        ids = example["input_ids"]
        return {"input_ids": [(t + 7) % 60 + 3 for t in ids] if i == changed else ids}

    before = outputs(pair, batch(examples, members_RM, width))
    after = outputs(pair, batch(examples.map(other, with_indices=True), members_RM, width))
    assert not np.allclose(before.pop(changed), after.pop(changed), atol=1e-2)
    for i, logits_C in before.items():
        np.testing.assert_array_equal(after[i], logits_C)


def test_positions_restart_with_every_example(pair, examples):
    """The same text first, second and third in a row, behind others of different lengths."""
    ids, fillers = examples["input_ids"], [0, 1, 2]
    texts = datasets.Dataset.from_dict(
        {
            "input_ids": [*(ids[i][:n] for i, n in zip(fillers, (2, 3, 4), strict=True)), ids[5]],
            "target": [0, 0, 0, 1],
        }
    )
    members = [[3, 0, 1], [0, 3, 1], [1, 2, 3]]
    made = batch(texts, members, 24)
    found = jax.jit(lambda params: TASK.predict(pair.drawn.merge(params), made))(pair.params)
    logits_RMC = np.asarray(found["logits_NC"]).reshape(3, 3, LABELS)
    assert_close(logits_RMC[1, 1], logits_RMC[0, 0], "logits of a text that is second")
    assert_close(logits_RMC[2, 2], logits_RMC[0, 0], "logits of a text that is third")
    running = made._replace(
        tokens=made.tokens._replace(positions_BL=np.tile(np.arange(24) % 17, (3, 1)))
    )
    found = jax.jit(lambda params: TASK.predict(pair.drawn.merge(params), running))(pair.params)
    moved_C = np.asarray(found["logits_NC"]).reshape(3, 3, LABELS)[2, 2]
    assert not np.allclose(moved_C, logits_RMC[2, 2], atol=1e-2), "a position makes a difference"
