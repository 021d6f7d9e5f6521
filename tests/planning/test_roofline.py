"""The way to the host's memory in the shortest time of an update."""

from typing import Any

import pytest
from plans import TINY_LLAMA, sketched

from jaxft.chips import CHIPS
from jaxft.planning.estimate import Estimator, Footprint
from jaxft.planning.roofline import Roofline, roofline
from jaxft.planning.sketch import Sketch

INPUTS_ON_HOST = {"block_input": "host"}


def planned(chip: str = "v5e", **keys: Any) -> tuple[Sketch, Footprint, Roofline]:
    made = sketched(**keys)
    footprint = Estimator(made)(made)
    return made, footprint, roofline(made, footprint, CHIPS[chip], sent_bytes=0)


def test_offloaded_weights_and_moments_come_from_the_host_and_the_weights_twice():
    _, near, without = planned()
    _, far, offloaded = planned(optim__offload=True)
    # 12 bytes a weight for the update, 4 for the working copy.
    assert far.fetched == pytest.approx(4 * near.parameters, rel=1e-3)
    assert offloaded.host_s == far.fetched / 16e9
    assert offloaded.limit == "host"
    assert offloaded.step_s == offloaded.host_s
    assert offloaded.mfu < without.mfu
    assert without.host_s == near.fetched == 0
    assert "host" not in without.times


def test_activations_come_back_for_each_micro_batch():
    made, once, _ = planned(model__kept_activations=INPUTS_ON_HOST)
    _, twice, _ = planned(
        model__kept_activations=INPUTS_ON_HOST, train__gradient_accumulation_steps=2
    )
    inputs = made.rows // 8 * made.width * 4 * TINY_LLAMA["hidden_size"]
    assert once.fetched == twice.fetched == inputs * TINY_LLAMA["num_hidden_layers"]
    assert twice.host == once.host // 2


def test_where_no_rate_is_known_the_way_is_said_not_to_be_counted():
    _, _, offloaded = planned("tpu7x", optim__offload=True)
    assert offloaded.host_s is None
    assert offloaded.limit != "host"
    _, _, without = planned("tpu7x")
    assert without.host_s == 0
