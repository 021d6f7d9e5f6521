"""What is said of a run before it starts."""

import re
from dataclasses import replace

import numpy as np
import pytest

from jaxft.data.plan import Plan
from jaxft.summary import padding_advice

LENGTHS = np.clip(np.random.default_rng(0).lognormal(2.3, 0.6, 2000), 3, 60).astype(int)


@pytest.mark.parametrize(
    ("unit", "why"), [(1, r"%\."), (16, r"%: rows come in multiples of .* = 16\.")]
)
def test_advice_on_padding_comes_where_rows_of_one_example_pad_less(unit, why):
    size = 2 if unit == 1 else 32
    shared = Plan(LENGTHS, size, max_length=64, seed=0, row_unit=unit)
    assert replace(shared, packing="none").full > 1.1 * shared.full
    (said,) = padding_advice(shared)
    assert re.match(f"{shared.full:.0%} of .* are real, with data.packing=none [0-9]+{why}", said)
    assert padding_advice(replace(shared, packing="none")) == []
    assert padding_advice(replace(shared, batch_size=256, row_unit=1)) == []
