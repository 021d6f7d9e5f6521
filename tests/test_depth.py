"""Depth costs nothing to compile: a stack is one program, however many layers it holds."""

from dataclasses import replace

import jax
import numpy as np
import pytest
import talk

from jaxft.data.batches import put


def program(tmp_path, layers: int, checkpointing: str) -> str:
    """The compiled update of a Llama of so many layers, with its scans as accelerators have
    them.
    """
    data = talk.lines(tmp_path / "chats.jsonl", talk.chats())
    raw = talk.recipe(tmp_path, data)
    fields = talk.MODELS["llama"] | {"num_hidden_layers": layers}
    raw["model"] = {"config": fields, "activation_checkpointing": checkpointing}
    run, _ = talk.begin(raw)
    drawn = run.experiment.drawn
    drawn = drawn.redraw(replace(drawn.compute, unroll_layers=False))
    experiment = replace(run.experiment, drawn=drawn)
    batch = put(run.source.empty(128), experiment.rows)
    with jax.set_mesh(experiment.mesh):
        step = experiment.train_step(run.optimizer).lower(run.abstract, batch, np.int32(0))
        return step.compile().as_text()


@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_80_layers_are_no_longer_a_program_than_16(tmp_path, checkpointing):
    """In instructions, which compile time grows with; docs/scale.md has the seconds for TPUs."""
    few, many = (program(tmp_path, layers, checkpointing).count(" = ") for layers in (16, 80))
    assert few > 1000
    assert many <= 1.02 * few
