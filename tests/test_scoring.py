"""Evaluation compiles one program for all splits, and gives their rows back in order."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
import runs
import talk

from jaxft.parts import Parts
from jaxft.planning.sketch import Sketch
from jaxft.scoring import Scorer
from jaxft.sharding import make_mesh
from jaxft.workdir import Workdir

pytestmark = pytest.mark.usefixtures("hurry")
SAME_LOGITS = 1e-6
"""Difference of logits below 1 whose rows were laid out in another way, in float32."""


@pytest.fixture(scope="module")
def assembled(tiny_bert_folder, tmp_path_factory) -> tuple[Any, Any, Any]:
    """Splits of texts of 3 to 15 tokens; the batches of one of them are all but full."""
    folder, keys = tmp_path_factory.mktemp("scoring"), runs.finished(tiny_bert_folder).keys
    files = {}
    for name, count in {"train": 20, "validation": 30, "test": 17}.items():
        texts = [(text.split(), label) for text, label in runs.rows(count, seed=count)]
        content = [
            (" ".join(words[: 1 + (7 * i) % len(words)]), label)
            for i, (words, label) in enumerate(texts)
        ]
        files[f"data.{name}"] = str(runs.table(folder / f"{name}.csv", content))
    return runs.assembled(keys | files | {"data.max_dropped": 1})


def scorer(assembled: Any, packing: str, devices: int, batch_size: int) -> tuple[Scorer, Any]:
    experiment, splits, matched = assembled
    config = replace(
        experiment.config,
        data=replace(experiment.config.data, packing=packing),
        train=replace(experiment.config.train, eval_batch_size=batch_size),
    )
    mesh = make_mesh({"data": devices}, jax.devices()[:devices])
    experiment = replace(experiment, mesh=mesh, config=config)
    params = experiment.initial_state(experiment.optimizer(12), matched).params
    return Scorer(experiment, {name: splits[name] for name in ("validation", "test")}), params


@pytest.fixture(scope="module")
def one_by_one(assembled) -> dict[str, np.ndarray]:
    """Logits of batches of a single example."""
    made, params = scorer(assembled, "none", devices=1, batch_size=1)
    return {name: made(params, name)["logits_NC"] for name in ("validation", "test")}


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("packing", ["batch", "rows", "none"])
def test_rows_come_back_in_their_order_however_they_were_packed(
    assembled, one_by_one, packing, devices
):
    made, params = scorer(assembled, packing, devices, batch_size=8)
    for name, expected in one_by_one.items():
        assert np.ptp(expected, axis=0).min() > 100 * SAME_LOGITS, "rows can be told apart"
        found = made(params, name)
        assert {len(column) for column in found.values()} == {len(expected)}
        np.testing.assert_allclose(found["logits_NC"], expected, atol=SAME_LOGITS)
        assert (found["weights_N"] == 1).all()
    if packing != "none":
        assert len(made._compiled) == 1, "for both splits"


@pytest.mark.parametrize(
    ("keys", "rows"),
    [
        ({"train.batch_size": 16}, 16),
        ({"train.batch_size": 16, "train.gradient_accumulation_steps": 2}, 8),
        ({"train.eval_batch_size": 9}, 16),  # a multiple of the devices
    ],
)
def test_an_evaluation_takes_a_micro_batch_by_default_and_a_plan_knows(
    keys, rows, tiny_bert_folder
):
    given = runs.finished(tiny_bert_folder).keys | {"data.packing": "none"} | keys
    experiment, splits, _ = runs.assembled(given)
    made = Parts(experiment, splits, Workdir("nowhere"), print)
    assert {plan.shape[0] for plan in made.scorer._plans.values()} == {rows}
    assert Sketch.of(made).evaluation_rows == rows


def test_splits_share_a_program_whatever_their_lengths(assembled):
    experiment, _, _ = assembled
    data = replace(experiment.config.data, max_length=256)
    experiment = replace(experiment, config=replace(experiment.config, data=data))
    for seed in range(40):
        draw = np.random.default_rng(seed)
        lengths = {
            name: np.clip(draw.lognormal(mean, 0.7, 99).astype(int), 3, 256)
            for name, mean in {"validation": 2.5, "test": 3.3}.items()
        }
        splits: Any = {
            name: SimpleNamespace(lengths=part, rows=None) for name, part in lengths.items()
        }
        plans = Scorer(experiment, splits)._plans.values()
        assert len({(plan.shape, plan.widths) for plan in plans}) == 1


def test_answers_come_from_the_weights_that_host_memory_is_read_into(tmp_path):
    data = talk.lines(tmp_path / "rows.jsonl", talk.questions())
    raw = talk.recipe(talk.folder(tmp_path), data)
    raw["task"] |= {"exact_match": "text", "generate_rows": 2, "max_new_tokens": 2}
    found = []
    for offload in (False, True):
        run, matched = talk.begin({**raw, "optim": raw["optim"] | {"offload": offload}})
        params = run.experiment.initial_state(run.optimizer, matched).params
        run.scorer.compile(run.abstract.params)
        programs = dict(run.scorer._programs)
        assert programs, "before the first update, for whatever memory they need"
        found.append(run.scorer.scores(params, "validation")[0])
        assert run.scorer._programs == programs
    assert "exact_match" in found[0]
    assert found[1] == pytest.approx(found[0])
