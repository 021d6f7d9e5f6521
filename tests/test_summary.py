"""What is said of a run before it starts, and what to type at its end."""

import re
import shlex
from dataclasses import replace

import numpy as np
import pytest

from jaxft.data.plan import Plan
from jaxft.summary import announce, padding_advice
from jaxft.workdir import Workdir

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


def test_the_next_commands_can_be_pasted_whatever_the_folder_is_called(capsys):
    result = {"step": 4, "best_step": 4, "before": {}, "examples_per_s": 1.0}
    said: list[str] = []
    announce(result, Workdir("my runs/it's 1"), said.append)
    capsys.readouterr()
    commands = [shlex.split(line) for line in said[said.index("Next:") + 1 :]]
    assert [words[:3] for words in commands[1:]] == [
        ["python", "-m", f"jaxft.{verb}"] for verb in ("predict", "export")
    ]
    assert commands[0] == ["tensorboard", "--logdir", "my runs/it's 1"]
    assert all("--workdir=my runs/it's 1" in words for words in commands[1:])
