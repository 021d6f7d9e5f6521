"""The task causal_lm: what is learnt, that it is learnt, and that neither packing, accumulation nor
devices change it.

B rows, L tokens, V vocabulary, N examples.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import runs
import talk

from jaxft import train
from jaxft.checkpoint import Checkpoints
from jaxft.data.batches import BatchSource, put
from jaxft.data.plan import Plan
from jaxft.experiment import Experiment
from jaxft.generate import Generator, Sampling
from jaxft.interrupts import Interrupts
from jaxft.models import Blueprint
from jaxft.nn.tokens import Batch
from jaxft.nn.weights import Tree, flatten
from jaxft.scoring import Scorer
from jaxft.source import byte_tokenizer
from jaxft.tasks.causal_lm import Task

SUM_RTOL = 2e-6
"""Relative difference of a loss whose tokens are added up in another order. Seen is 2e-7."""
GRAD_RTOL = 2e-5
"""Largest error of a gradient over its largest magnitude, for the same reason. Seen is 2e-6."""
STEPS_ATOL = 1e-6
"""The same of weights after three updates of SGD at a rate of 0.1."""
EIGHT, LIMIT = 8, 128
EOS, END = "<|endoftext|>", "<|im_end|>"
PACKINGS = ("batch", "rows", "none")
tokenizer = byte_tokenizer()


def features(
    rows: Sequence[dict[str, Any]], task: Task = Task(), max_length: int = LIMIT
) -> datasets.Dataset:
    columns = {"example": [json.dumps(row) for row in rows], "line": range(1, len(rows) + 1)}
    made = task.features(columns, tokenizer, max_length, "rows.jsonl")
    assert set(made.pop("dropped")) == {""}
    return datasets.Dataset.from_dict(made)


def lengths(examples: datasets.Dataset) -> np.ndarray:
    return np.array([len(ids) for ids in examples["input_ids"]])


def batches(
    examples: datasets.Dataset, packing: str = "batch", size: int = EIGHT, unit: int = 1
) -> list[Batch]:
    """One pass over all of them."""
    plan = Plan(lengths(examples), size, LIMIT, seed=0, packing=packing, row_unit=unit)
    source = BatchSource(
        plan, examples, Task().collate, plan.batches_per_epoch, np.ones(plan.shape[0], bool)
    )
    return [source[k] for k in range(len(source))]


# What is learnt


def learnt(batch: Batch) -> dict[int, list[str]]:
    """By the number of the example, what its learnt targets say, a text for each stretch."""
    said: dict[int, list[str]] = {}
    next_BL, learnt_BL = batch.targets["next_BL"], batch.targets["learnt_BL"]
    for row, numbers in enumerate(batch.rows_BM):
        for segment, number in enumerate(numbers, 1):
            mine = batch.tokens.segments_BL[row] == segment
            wanted = (learnt_BL[row] > 0) & mine
            starts = np.flatnonzero(wanted & ~np.roll(wanted, 1))
            if number >= 0:
                said[int(number)] = [
                    tokenizer.decode(next_BL[row, at : at + wanted[at:].argmin()]) for at in starts
                ]
    return said


def answers(row: dict[str, Any]) -> list[str]:
    if "completion" in row:
        return [row["completion"] + EOS]
    turns = (turn for turn in row["messages"] if turn["role"] == "assistant")
    return [turn["content"] + END for turn in turns]


def whole(row: dict[str, Any]) -> str:
    if "messages" in row:
        return tokenizer.apply_chat_template(row["messages"], tokenize=False)
    return row["prompt"] + row["completion"] + EOS


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("rows", talk.ROWS)
def test_only_completions_and_what_the_assistant_says_are_learnt(rows, packing):
    given = talk.ROWS[rows]()
    found: dict[int, list[str]] = {}
    for batch in batches(features(given), packing, size=4):
        found |= learnt(batch)
    assert found == {i: answers(row) for i, row in enumerate(given)}


@pytest.mark.parametrize(
    ("rows", "task"),
    [("questions", Task(completion_only_loss=False)), ("chats", Task(assistant_only_loss=False))],
)
def test_of_everything_all_is_learnt_but_the_first_token(rows, task):
    given = talk.ROWS[rows]()
    (batch,) = batches(features(given, task))
    expected = {i: tokenizer(whole(row))["input_ids"][1:] for i, row in enumerate(given)}
    assert learnt(batch) == {i: [tokenizer.decode(ids)] for i, ids in expected.items()}


def test_of_a_chat_the_last_answer_alone_can_be_learnt():
    given = talk.chats()
    (batch,) = batches(features(given, Task(turns="last")))
    assert learnt(batch) == {i: answers(row)[-1:] for i, row in enumerate(given)}
    assert max(len(answers(row)) for row in given) > 1


def test_targets_are_the_tokens_that_follow_and_end_with_the_example():
    examples = features(talk.questions())
    # Even where all tokens are to be learnt, the first one is nobody's target.
    everything = [[1] * n for n in lengths(examples)]
    examples = examples.remove_columns("trained").add_column("trained", everything)
    (batch,) = batches(examples)
    assert (batch.rows_BM >= 0).sum(1).max() > 1, "rows are shared"
    tokens, learnt_BL = batch.tokens, batch.targets["learnt_BL"]
    np.testing.assert_array_equal(batch.targets["next_BL"][:, :-1], tokens.ids_BL[:, 1:])
    ahead_BL = np.pad(tokens.segments_BL[:, 1:], ((0, 0), (0, 1)))
    inside_BL = (tokens.segments_BL > 0) & (tokens.segments_BL == ahead_BL)
    np.testing.assert_array_equal(learnt_BL, inside_BL)
    assert learnt_BL.sum() == lengths(examples).sum() - len(examples)


def test_documents_are_torn_and_every_token_comes_once():
    texts = ["".join(chr(97 + (i * j) % 26) for i in range(n)) for j, n in enumerate((300, 5, 129))]
    examples = features([{"text": text} for text in texts])
    assert lengths(examples).max() == LIMIT
    assert len(examples) > len(texts)
    for packing in PACKINGS:
        seen: dict[int, list[int]] = {}
        for batch in batches(examples, packing, size=2):
            for row, numbers in enumerate(batch.rows_BM):
                for segment, number in enumerate(numbers, 1):
                    mine = batch.tokens.segments_BL[row] == segment
                    if number >= 0:
                        assert number not in seen
                        seen[int(number)] = batch.tokens.ids_BL[row][mine].tolist()
        back = sum((seen[i] for i in sorted(seen)), [])
        assert tokenizer.decode(back) == "".join(text + EOS for text in texts)


# That neighbours, micro-batches and devices change nothing


class Model(NamedTuple):
    drawn: Blueprint
    params: Tree


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request) -> Model:
    return Model(*talk.drawn(request.param))


def loss_and_slopes(model: Model, batch: Batch) -> tuple[float, float, dict]:
    def loss(params: Tree) -> tuple:
        return Task().loss(model.drawn.merge(params), batch, None)

    (total, count), slopes = jax.jit(jax.value_and_grad(loss, has_aux=True))(model.params)
    return float(total), float(count), {path: np.asarray(x) for path, x in flatten(slopes)}


def outputs(model: Model, batch: Batch) -> dict[int, tuple[np.ndarray, ...]]:
    """Losses, tokens and hits by the number of the example."""
    found = jax.jit(lambda params: Task().predict(model.drawn.merge(params), batch))(model.params)
    columns = zip(*(np.asarray(found[k]) for k in ("losses_N", "tokens_N", "hits_N")), strict=True)
    return {
        int(i): row for i, row in zip(batch.rows_BM.ravel(), columns, strict=True) if i >= 0
    }


def test_pitfall_9_packed_examples_have_the_loss_and_the_gradients_they_have_alone(model):
    examples = features(talk.questions())
    (alone,) = batches(examples, "none")
    total, count, slopes = loss_and_slopes(model, alone)
    assert count == sum(len(row["completion"].encode()) + 1 for row in talk.questions())
    for packing in ("batch", "rows"):
        (packed,) = batches(examples, packing)
        assert (packed.rows_BM >= 0).sum(1).max() > 1, "rows are shared"
        ours, tokens, gradients = loss_and_slopes(model, packed)
        assert tokens == count
        assert ours == pytest.approx(total, rel=SUM_RTOL)
        for path, gradient in slopes.items():
            error = np.abs(gradients[path] - gradient).max()
            assert error <= GRAD_RTOL * np.abs(gradient).max(), path


def test_pitfall_9_a_neighbour_in_the_row_is_not_seen(model):
    (batch,) = batches(features(talk.chats()))
    row = int(((batch.rows_BM >= 0).sum(1) > 1).argmax())
    first = batch.tokens.segments_BL == 1
    first[:row], first[row + 1 :] = False, False
    other = np.where(first, batch.tokens.ids_BL ^ 1, batch.tokens.ids_BL)
    changed = batch._replace(tokens=batch.tokens._replace(ids_BL=other))
    before, after = outputs(model, batch), outputs(model, changed)
    number = int(batch.rows_BM[row, 0])
    assert abs(before.pop(number)[0] - after.pop(number)[0]) > 1e-2
    assert len(before) == EIGHT - 1
    assert before == after


UPDATES = 3


@dataclass(frozen=True)
class Trained:
    losses: np.ndarray
    grad_norms: np.ndarray
    weights: dict


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("recipe")
    data = talk.lines(root / "rows.jsonl", talk.questions())
    optim = {"name": "sgd", "learning_rate": 0.1, "warmup_steps": 0}
    return talk.recipe(talk.folder(root), data, optim=optim, train={"max_steps": UPDATES})


@pytest.mark.parametrize("packing", ["batch", "none"])
def test_pitfall_1_accumulation_and_devices_are_one_big_batch(recipe, packing):
    def updates(sizes: dict[str, int], accumulation: int) -> Trained:
        more = {"gradient_accumulation_steps": accumulation}
        raw = {
            **recipe,
            "train": {**recipe["train"], **more},
            "data": {**recipe["data"], "packing": packing},
        }
        run, matched = talk.begin(raw, sizes)
        experiment, seen = run.experiment, []
        state, steps = experiment.initial_state(run.optimizer, matched), run.compile()
        for k in range(UPDATES):
            batch = run.source[k]
            counts = batch.targets["learnt_BL"].sum(1).reshape(-1, accumulation).sum(0)
            assert accumulation == 1 or len(set(counts)) > 1, "no two micro-batches weigh the same"
            state, metrics = steps[run.plan[k][1]](state, put(batch, experiment.rows), np.int32(k))
            assert metrics["accepted"]
            seen.append((metrics["loss"], metrics["grad_norm"]))
        losses, norms = np.array(seen, np.float64).T
        return Trained(losses, norms, {p: np.asarray(x) for p, x in flatten(state.params)})

    one = updates({"data": 1}, 1)
    for parts in (updates({"data": 1}, 4), updates({"data": 1, "fsdp": 2}, 4)):
        np.testing.assert_allclose(parts.losses, one.losses, rtol=SUM_RTOL)
        np.testing.assert_allclose(parts.grad_norms, one.grad_norms, rtol=GRAD_RTOL)
        for path, weight in one.weights.items():
            np.testing.assert_allclose(parts.weights[path], weight, rtol=0, atol=STEPS_ATOL)


# Scores


def plain_scores(experiment: Experiment, params: Tree, examples: datasets.Dataset) -> dict:
    """Of all logits of each row by itself, by optax."""
    model = experiment.drawn.merge(params)
    losses, hits = [], []
    for row in examples:
        ids = jnp.asarray([row["input_ids"]], jnp.int32)
        ones, places = jnp.ones_like(ids), jnp.arange(ids.shape[1], dtype=jnp.int32)[None]
        tokens = batches_tokens(ids, ones, places)
        with jax.disable_jit():
            logits_LV = experiment.task.logits(model, tokens)[0, :-1]
        wanted_L = np.array(row["trained"][1:], bool)
        target_L = ids[0, 1:]
        nll_L = optax.softmax_cross_entropy_with_integer_labels(logits_LV, target_L)
        losses.append(np.asarray(nll_L)[wanted_L])
        hits.append(np.asarray(logits_LV.argmax(-1) == target_L)[wanted_L])
    loss = float(np.concatenate(losses).mean(dtype=np.float64))
    return {
        "loss": loss,
        "perplexity": np.exp(loss),
        "token_accuracy": np.concatenate(hits).mean(dtype=np.float64),
    }
