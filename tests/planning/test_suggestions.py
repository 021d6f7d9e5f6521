"""Changes that make a run fit: the nearest first, and each as flags that do what they say."""

from dataclasses import replace
from itertools import islice

import pytest
from plans import TINY_LLAMA, sketched

from jaxft import config as configs
from jaxft import flags, schema, tasks
from jaxft.planning import places, suggestions
from jaxft.planning.estimate import Estimator
from jaxft.planning.suggestions import FILLED, changed, suggest

WIDE = TINY_LLAMA | {"hidden_size": 512, "intermediate_size": 1536, "vocab_size": 2048}


@pytest.fixture(scope="module")
def large():
    """A run that keeps everything, whole on each of 16 chips."""
    keys = {"mesh__data": -1, "mesh__fsdp": 1, "model__activation_checkpointing": "none"}
    made = sketched("v5e:4x4", model__config=WIDE, train__batch_size=64, **keys)
    return made, Estimator(made)


def found(large, share: float, count: int = 3):
    """The nearest changes for devices of this share of what the run needs."""
    made, estimate = large
    room = int(estimate(made).peak * share)
    place = replace(places.find("v5e:4x4", compiling=False), hbm_bytes=room)
    return list(islice(suggest(made, place, estimate), count)), room


def test_suggestions_fit_and_none_contains_another(large):
    ones, room = found(large, 0.6)
    assert len(ones) == 3
    for one in ones:
        assert one.footprint.peak <= FILLED * room
        assert not any(o is not one and o.changes.items() <= one.changes.items() for o in ones)


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
    overrides, rest = flags._overrides(one.flags)
    assert rest == []
    pasted = configs._resolve(
        configs.to_dict(made.config), overrides, tasks.options, "here", needs_data=False
    )
    assert pasted == one.sketch.config
    again = changed(made, places.find("v5e:4x4", compiling=False), one.changes)
    assert estimate(again) == one.footprint


def test_a_mesh_that_cannot_split_the_heads_or_the_batch_is_not_offered(large):
    made, _ = large
    place = places.find("v5e:4x4", compiling=False)
    assert changed(made, place, {"mesh.data": 2, "mesh.tensor": 8}) is None
    assert changed(made, place, {"train.gradient_accumulation_steps": 8}) is None
    assert changed(made, place, {"mesh.data": 1, "mesh.fsdp": 16}) is not None


def test_every_change_in_the_table_is_a_key_of_the_schema():
    known = {key.name for key in schema.keys(tasks.options(schema.DEFAULT_TASK))}
    assert set(suggestions.CHANGES) <= known
