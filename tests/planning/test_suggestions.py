"""Changes that make a run fit: the nearest first, and each as flags that do what they say."""

from dataclasses import replace
from itertools import islice, pairwise

import pytest
from plans import TINY_LLAMA, sketched

from jaxft import config as configs
from jaxft import flags, schema, tasks
from jaxft.config import Config
from jaxft.planning import places, suggestions
from jaxft.planning.estimate import Estimator
from jaxft.planning.sketch import Sketch
from jaxft.planning.suggestions import FILLED, Suggestion, changed, suggest

WIDE = TINY_LLAMA | {"hidden_size": 512, "intermediate_size": 1536, "vocab_size": 2048}
CHECKPOINTING = "model.activation_checkpointing"


@pytest.fixture(scope="module")
def large():
    """A run that keeps everything, whole on each of 16 chips."""
    keys = {"mesh__data": -1, "mesh__fsdp": 1, "model__activation_checkpointing": "none"}
    made = sketched("v5e:4x4", model__config=WIDE, train__batch_size=64, **keys)
    return made, Estimator(made)


def found(large, share: float, count: int = 3):
    """The nearest changes for devices of this share of what an update needs."""
    made, estimate = large
    room = int(estimate(made).peak * share)
    place = replace(places.find("v5e:4x4", compiling=False), hbm_bytes=room)
    fitting: list[Suggestion] = []
    for one in suggest(made, place, estimate, fitting):
        fitting.append(one)
        if len(fitting) == count:
            break
    return fitting, room


def pasted(made: Sketch, one: Suggestion) -> Config:
    """The config with a suggestion's flags behind it."""
    overrides, rest = flags._overrides(one.flags)
    assert rest == []
    raw = configs.to_dict(made.config)
    return configs._resolve(raw, overrides, tasks.options, "here", needs_data=False)


def test_suggestions_fit_and_each_goes_another_way(large):
    ones, room = found(large, 0.6)
    assert len(ones) == 3
    for one in ones:
        assert one.footprint.peak <= FILLED * room
        others = [other.changes for other in ones if other is not one]
        assert not any(other.items() <= one.changes.items() for other in others)
        assert all(other.keys() != one.changes.keys() for other in others)


@pytest.mark.parametrize(
    ("changes", "than", "further"),
    [
        ({"train.gradient_accumulation_steps": 8}, {"train.gradient_accumulation_steps": 4}, True),
        ({"train.gradient_accumulation_steps": 4}, {"train.gradient_accumulation_steps": 8}, False),
        ({"train.batch_size": 16}, {"train.batch_size": 32}, True),
        ({"train.batch_size": 32}, {"train.batch_size": 16}, False),
        ({CHECKPOINTING: "full"}, {CHECKPOINTING: "dots"}, True),
        ({CHECKPOINTING: "dots"}, {CHECKPOINTING: "full"}, False),
        ({CHECKPOINTING: "full", "mesh.fsdp": 4}, {CHECKPOINTING: "dots"}, True),
        ({CHECKPOINTING: "full"}, {CHECKPOINTING: "dots", "mesh.fsdp": 4}, False),
        ({"mesh.fsdp": 4}, {"mesh.fsdp": 8}, True),
        ({"mesh.tensor": 4}, {"mesh.fsdp": 4}, False),
        ({"optim.offload": True}, {"optim.offload": True}, True),
    ],
)
def test_what_goes_further_than_what_fits_is_left_out(changes, than, further):
    assert suggestions._goes_further(changes, than) == further


def test_what_goes_further_than_what_the_compiler_refused_is_not_left_out(large):
    made, estimate = large
    place = places.find("v5e:4x4", compiling=False)
    place = replace(place, hbm_bytes=int(estimate(made).peak * 0.6))
    ones = [one.changes for one in islice(suggest(made, place, estimate), 40)]
    assert any(suggestions._goes_further(b, a) for a, b in pairwise(ones))


def test_less_room_asks_for_more_changes(large):
    near, _ = found(large, 0.8, 1)
    far, _ = found(large, 0.2, 1)
    assert len(far[0].changes) > len(near[0].changes)
    none, _ = found(large, 0.001)
    assert none == []


def test_what_changes_the_result_comes_last(large):
    ones, _ = found(large, 0.6, 10)
    kept = [not any("batch_size" in key for key in one.changes) for one in ones]
    assert kept == sorted(kept, reverse=True)
    assert kept[0]


def test_pasted_flags_give_the_config_that_was_estimated(large):
    made, estimate = large
    (one, *_), _ = found(large, 0.2)
    assert pasted(made, one) == one.sketch.config
    again = changed(made, places.find("v5e:4x4", compiling=False), one.changes)
    assert estimate(again) == one.footprint


def test_an_evaluation_that_does_not_fit_takes_a_micro_batch_at_once():
    keys = {"mesh__data": -1, "mesh__fsdp": 1, "train__batch_size": 64}
    made = sketched("v5e:4x4", model__config=WIDE, train__eval_batch_size=8192, **keys)
    estimate = Estimator(made)
    ones, room = found((made, estimate), 1.2)
    assert estimate(made).peak < FILLED * room < estimate.evaluation(made)
    (one,) = ones
    assert one.changes == {"train.eval_batch_size": None}
    assert one.evaluation_bytes == estimate.evaluation(one.sketch) <= FILLED * room
    assert one.peak_bytes == estimate(made).peak, "of the update, which is as before"
    assert pasted(made, one) == one.sketch.config
    ones, room = found((made, estimate), 0.8)
    assert len(ones) == 3
    assert all("train.eval_batch_size" in one.changes for one in ones)
    assert all(one.footprint.peak < estimate(made).peak for one in ones)


def test_tokens_are_split_where_a_device_has_one_row_and_nothing_else_to_split():
    one_head = {"num_attention_heads": 1, "num_key_value_heads": 1}
    long = TINY_LLAMA | one_head | {"max_position_embeddings": 2048}
    made = sketched("v5e:4x4", model__config=long, data__max_length=2048)
    assert made.rows == made.experiment.row_shards == 16
    ones, _ = found((made, Estimator(made)), 0.7)
    assert all(one.changes["mesh.context"] > 1 for one in ones)
    assert pasted(made, ones[0]) == ones[0].sketch.config


def test_a_mesh_that_cannot_split_the_heads_or_the_batch_is_not_offered(large):
    made, _ = large
    place = places.find("v5e:4x4", compiling=False)
    assert changed(made, place, {"mesh.data": 2, "mesh.tensor": 8}) is None
    assert changed(made, place, {"train.gradient_accumulation_steps": 8}) is None
    assert changed(made, place, {"mesh.data": 1, "mesh.fsdp": 16}) is not None


def test_every_change_in_the_table_is_a_key_of_the_schema():
    known = {key.name for key in schema.keys(tasks.options(schema.DEFAULT_TASK))}
    assert set(suggestions.CHANGES) <= known
