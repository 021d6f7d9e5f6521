"""Values of config keys: from words of the shell, by type and range."""

import dataclasses
from typing import Any, Literal

import pytest

from jaxft import schema, values


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """A task's options with every kind of type that no section of the schema has."""

    mode: Literal["auto"] | Literal["one", "many"] = "auto"
    weights: Literal["balanced"] | dict[str, float] | None = None
    sizes: tuple[int, ...] = (1, 2)
    smoothing: float = dataclasses.field(
        default=0.0, metadata={"help": "of labels", "must": ">= 0 and < 1"}
    )


KEYS = {key.name: key for key in schema.keys(Options)}


def read(name: str, word: str) -> Any:
    return values.read(word, KEYS[name].hint, KEYS[name].must)


@pytest.mark.parametrize(
    ("name", "word", "value"),
    [
        ("optim.learning_rate", "1e-5", 1e-5),
        ("optim.learning_rate", "1", 1.0),
        ("optim.warmup_steps", "0.1", 0.1),
        ("optim.warmup_steps", "100", 100),
        ("optim.warmup_steps", "1e3", 1000),
        ("optim.warmup_steps", "0", 0),
        ("optim.max_grad_norm", "None", None),
        ("optim.max_grad_norm", "0.5", 0.5),
        ("train.max_steps", "10", 10),
        ("train.eval_batch_size", "none", None),
        ("train.report_to", "tensorboard,wandb", ["tensorboard", "wandb"]),
        ("train.report_to", "['wandb']", ["wandb"]),
        ("train.report_to", '["wandb"]', ["wandb"]),
        ("train.report_to", "[wandb]", ["wandb"]),
        ("train.report_to", "", []),
        ("data.header", "false", False),
        ("data.header", "True", True),
        ("data.header", "0", False),
        ("data.validation", "None", None),
        ("data.validation", "v=1,2:x.csv", "v=1,2:x.csv"),
        ("data.validation", "2024", "2024"),
        ("data.delimiter", "\\t", "\t"),
        ("data.delimiter", " ", " "),
        ("data.text_column", "3", 3),
        ("data.text_column", "'3'", "3"),
        ("data.text_column", "body", "body"),
        ("model.activation_checkpointing", "none", "none"),
        ("model.config", '{"tie": true, "x": null}', {"tie": True, "x": None}),
        ("model.config", "{'tie': True, 'x': None}", {"tie": True, "x": None}),
        ("optim.lr_multipliers", r"{'layers\.0': 1}", {r"layers\.0": 1.0}),
        ("mesh.data", "-1", -1),
        ("task.weights", "balanced", "balanced"),
        ("task.weights", "{'a': 2}", {"a": 2.0}),
        ("task.sizes", "4,5", (4, 5)),
        ("task.sizes", "4", (4,)),
    ],
)
def test_a_word_of_the_shell_becomes_a_value_of_the_keys_type(name, word, value):
    got = read(name, word)
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("name", "word", "said"),
    [
        ("train.batch_size", "3.0", "must be a whole number; write 3"),
        ("train.batch_size", "1e-5", "must be a whole number"),
        ("train.batch_size", "0", "must be >= 1"),
        ("train.batch_size", "true", "must be a whole number"),
        ("train.batch_size", "None", "must be a whole number"),
        ("optim.learning_rate", "fast", "must be a finite number"),
        ("optim.learning_rate", "nan", "must be a finite number"),
        ("optim.learning_rate", "NaN", "must be a finite number"),
        ("optim.learning_rate", "inf", "must be a finite number"),
        ("optim.learning_rate", "1e999", "must be a finite number"),
        ("optim.learning_rate", "1" + "0" * 400, "must be a finite number"),
        ("optim.learning_rate", "-1e-5", "must be >= 0"),
        ("optim.layer_decay", "0", "must be > 0 and <= 1"),
        ("optim.layer_decay", "1.1", "must be > 0 and <= 1"),
        ("optim.warmup_steps", "1.5", "must be a whole number or a share below 1"),
        ("optim.lr_multipliers", "{'head': -1}", "must be >= 0"),
        ("optim.lr_multipliers", "{'head': 'x'}", "must be a dict of text to a finite number"),
        ("optim.lr_multipliers", "{1: 2}", "must be a dict of text"),
        ("optim.lr_scheduler_kwargs", '{"a": [NaN]}', "must be a dict of text to JSON"),
        ("train.eval_steps", "1.0", "could mean one or all"),
        ("train.eval_steps", "0", "must be > 0"),
        ("train.report_to", "tensorbord", "must be a list, each one of tensorboard, wandb"),
        ("data.header", "maybe", "must be true or false"),
        ("data.max_length", "1", "must be >= 2"),
        ("mesh.fsdp", "0", "must be -1 or >= 1"),
        ("mesh.fsdp", "-2", "must be -1 or >= 1"),
        ("model.dtype", "fp16", "must be one of auto, float32, bfloat16"),
        ("model.dropout", "1", "must be >= 0 and < 1"),
        ("task.smoothing", "1", "must be >= 0 and < 1"),
        ("task.mode", "all", "must be one of auto, one, many"),
        ("seed", "-1", "must be >= 0"),
    ],
)
def test_a_word_that_the_type_or_range_excludes_is_refused_in_words(name, word, said):
    with pytest.raises(ValueError) as caught:
        read(name, word)
    assert said in str(caught.value)
