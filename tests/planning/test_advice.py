"""All weights or an adapter: what each fact of the case does to the answer."""

from dataclasses import replace
from typing import Any

import pytest

from jaxft.planning.advice import MANY, RANK, Case, adapter_parameters, advise

LINEAR = ((32, 4096, 4096), (32, 4096, 14336))
CASE = Case("instruct", 8_000_000_000, LINEAR, 1, True, 1e6, True, None, None)


def choice(**changes: Any) -> str:
    return advise(replace(CASE, **changes)).choice


@pytest.mark.parametrize(
    ("changes", "answer"),
    [
        ({}, "adapter"),
        ({"objective": "domain"}, "full"),
        ({"objective": "domain", "variants": MANY}, "adapter"),
        ({"objective": "domain", "fits": False}, "adapter"),
        ({"objective": "domain", "bill": 1400.0, "budget": 1000.0}, "adapter"),
        ({"objective": "domain", "bill": 9000.0, "budget": 1000.0}, "full"),
        ({"learnt_tokens": 1e12}, "full"),
        ({"learnt_tokens": 1e12, "tokens_are_counted": False}, "either"),
        ({"objective": "reinforce"}, "adapter"),
        ({"objective": "classify", "parameters": 110_000_000}, "full"),
        ({"objective": "classify", "parameters": 110_000_000, "variants": 20}, "adapter"),
        ({"objective": "classify"}, "adapter"),
    ],
)
def test_the_answer_follows_the_case(changes, answer):
    assert choice(**changes) == answer


def test_every_reason_has_a_source_and_the_weightiest_comes_first():
    case = replace(CASE, objective="domain", variants=9, fits=False, bill=12.0, budget=10.0)
    reasons = advise(case).reasons
    assert len(reasons) == 5
    assert reasons[0].text.startswith("all weights with their optimizer state do not fit")
    assert [r.weight for r in reasons] == sorted((r.weight for r in reasons), reverse=True)
    assert all("20" in reason.source for reason in reasons)


def test_what_an_adapter_would_save_in_memory_is_counted():
    case = replace(CASE, objective="classify", parameters=110_000_000)
    (text,) = (r.text for r in advise(case).reasons if "memory" in r.text)
    assert " 1.3 GB" in text  # 12 bytes each


def test_an_adapters_parameters_are_two_thin_matrices_a_layer():
    expected = 32 * RANK * (4096 + 4096) + 32 * RANK * (4096 + 14336)
    assert adapter_parameters(CASE) == expected
    # What it can hold decides: just under, just over.
    assert choice(learnt_tokens=2.0 * expected) == "adapter"
    assert choice(learnt_tokens=2.1 * expected) == "full"
