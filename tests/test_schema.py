"""The table of keys, and what contradicts itself."""

import dataclasses
from typing import Any

import pytest
from test_values import KEYS, Options

from jaxft import config, schema, values
from jaxft.config import Config
from jaxft.errors import UserError


def from_dict(raw: dict[str, Any]) -> Config:
    return config.from_dict(raw, lambda name: Options)


def test_every_key_is_documented_and_its_default_is_legal():
    rows = [*KEYS.values()]
    names = [row.name for row in rows]
    assert len(set(names)) == len(names)
    assert next(name for name in names if name.startswith("task.")) == "task.name"
    for row in rows:
        assert row.help or row.name.startswith("task."), row.name
        assert values.accept(row.default, row.hint, row.must) == row.default, row.name
        assert row.allowed
    assert KEYS["optim.layer_decay"].allowed == "a finite number, > 0 and <= 1"


def test_a_tasks_file_cannot_annotate_a_key_in_a_way_that_nothing_reads():
    @dataclasses.dataclass(frozen=True)
    class Wrong:
        x: int = dataclasses.field(default=1, metadata={"min": 0})

    with pytest.raises(TypeError, match=r"task\.x"):
        schema.keys(Wrong)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"train.max_steps": 5, "train.num_train_epochs": 2}, "both say when to stop"),
        ({"model.config": {}}, "model.pretrained = 'm' and model.config are both set"),
        ({"model.pretrained": None}, "model.pretrained and model.config are both None"),
        ({"data.train": None}, "data.train is None"),
        ({"train.gradient_accumulation_steps": 5}, "train.batch_size = 32 cannot be split into"),
        ({"mesh.tensor": -1}, "mesh.data and mesh.tensor are -1"),
        ({"optim.warmup_steps": 9, "train.max_steps": 8}, "is more than train.max_steps = 8"),
        (
            {"train.early_stopping_patience": 2, "checkpoint.keep_best": 0},
            "checkpoint.keep_best = 0 keeps none",
        ),
        ({"optim.lr_multipliers": {"(": 1}}, "'(' is no regular expression"),
        ({"data.delimiter": "::"}, "must be one character"),
        ({"data.encoding": "utf-9"}, "no encoding that Python knows"),
    ],
)
def test_contradictions_are_refused(keys, said):
    raw: dict[str, Any] = {"model": {"pretrained": "m"}, "data": {"train": "t"}}
    from_dict(raw)
    for name, value in keys.items():
        home, last = name.split(".")
        raw.setdefault(home, {})[last] = value
    with pytest.raises(UserError) as caught:
        from_dict(raw)
    message = str(caught.value)
    assert message.startswith("1 problem in the config:")
    assert said in message


def test_what_is_near_a_contradiction_is_legal():
    raw = {
        "model": {"pretrained": "m"},
        "data": {"train": "t"},
        "optim": {"warmup_steps": 8, "learning_rate": 0},
        "train": {"max_steps": 8, "gradient_accumulation_steps": 8},
        "mesh": {"data": 1, "fsdp": -1},
    }
    assert from_dict(raw).train.num_train_epochs is None
