"""The task causal_lm: what is learnt, that it is learnt, and that neither packing, accumulation nor
devices change it.

B rows, L tokens, V vocabulary, N examples.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import jax
import numpy as np
import optax
import pytest
import runs
import talk

from jaxft import config, summary, tasks, train
from jaxft.data.batches import BatchSource
from jaxft.data.features import Rows
from jaxft.data.plan import Plan
from jaxft.errors import UserError
from jaxft.generate import Generator, Sampling
from jaxft.interrupts import Interrupts
from jaxft.models import Blueprint
from jaxft.nn.tokens import Batch
from jaxft.nn.weights import Tree, flatten
from jaxft.source import byte_tokenizer
from jaxft.tasks.causal_lm import Task
from jaxft.vocabulary import add_tokens

pytestmark = pytest.mark.usefixtures("hurry")
SUM_RTOL = 1e-6
"""Relative difference of a loss whose tokens are added up in another order. Seen is 2e-7."""
GRAD_RTOL = 5e-6
"""Largest error of a gradient over its largest magnitude, for the same reason. Seen is 1e-6."""
STEPS_ATOL = 2e-7
"""Of weights after three updates of SGD at a rate of 0.1. Seen is 3e-8."""
EIGHT, LIMIT = 8, 128
EOS, END = "<|endoftext|>", "<|im_end|>"
PACKINGS = ("batch", "rows", "none")
tokenizer = byte_tokenizer()


def as_read(rows: Sequence[dict[str, Any]]) -> datasets.Dataset:
    columns = {"example": [json.dumps(row) for row in rows], "line": range(1, len(rows) + 1)}
    return datasets.Dataset.from_dict(columns)


def features(
    rows: Sequence[dict[str, Any]], task: Task = Task(), max_length: int = LIMIT
) -> datasets.Dataset:
    made = task.features(as_read(rows)[:], tokenizer, max_length, "rows.jsonl")
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
        return [" " + row["completion"] + EOS]  # the blank that the prompt ends with
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


@pytest.mark.parametrize("packing", PACKINGS)
def test_the_padding_that_is_said_is_that_of_the_batches(packing):
    examples = features([*talk.questions("Mix", "Now take some more of", "Add"), *talk.chats()])

    def share(packing: str) -> str:
        made = [batch.tokens.segments_BL for batch in batches(examples, packing)]
        real, computed = (sum(map(count, made)) for count in (np.count_nonzero, np.size))
        widths = ", ".join(map(str, sorted({segments_BL.shape[1] for segments_BL in made})))
        return f"{1 - real / computed:.1%} (rows of {widths})"

    other = "batch" if packing == "none" else "none"
    assert share(packing) != share(other)
    plan = Plan(lengths(examples), EIGHT, LIMIT, seed=0, packing=packing)
    assert summary.padding(plan) == (
        f"Padding: {share(packing)} of the tokens computed; with data.packing={other} it would be "
        f"{share(other)}"
    )


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
        back = [token for i in sorted(seen) for token in seen[i]]
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
    return {int(i): row for i, row in zip(batch.rows_BM.ravel(), columns, strict=True) if i >= 0}


def test_pitfall_9_packed_examples_have_the_loss_and_the_gradients_they_have_alone(model):
    examples = features(talk.questions())
    (alone,) = batches(examples, "none")
    total, count, slopes = loss_and_slopes(model, alone)
    assert count == sum(len(row["completion"]) + 2 for row in talk.questions())
    for packing in ("batch", "rows"):
        (packed,) = batches(examples, packing)
        assert (packed.rows_BM >= 0).sum(1).max() > 1, "rows are shared"
        ours, tokens, gradients = loss_and_slopes(model, packed)
        assert tokens == count
        assert ours == pytest.approx(total, rel=SUM_RTOL)
        for path, gradient in slopes.items():
            if path[-2:] != ("key", "bias"):  # softmax cancels it: rounding is all there is
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


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("recipe")
    data = talk.lines(root / "rows.jsonl", talk.questions())
    return talk.recipe(talk.folder(root), data)


def test_pitfall_1_accumulation_and_devices_are_one_big_batch(recipe, tmp_path):
    source = talk.lines(tmp_path / "rows.jsonl", talk.questions("Mix", "Then mix", "Add", "Use"))
    raw = {
        **recipe,
        "data": {**recipe["data"], "train": str(source)},
        "optim": {"name": "sgd", "learning_rate": 0.1, "warmup_steps": 0},
        "train": {"max_steps": 3, "batch_size": 32},
    }
    one = talk.learn(*talk.begin(raw))
    raw["train"]["gradient_accumulation_steps"] = 4
    run, matched = talk.begin(raw, {"data": 1, "fsdp": 2})
    learnt_B = run.source[0].targets["learnt_BL"].sum(1)
    assert len(set(learnt_B.reshape(-1, 4).sum(0))) > 1, "micro-batches weigh differently"
    parts = talk.learn(run, matched)
    np.testing.assert_allclose(parts.losses, one.losses, rtol=SUM_RTOL)
    np.testing.assert_allclose(parts.grad_norms, one.grad_norms, rtol=GRAD_RTOL)
    for path, weight in one.weights.items():
        np.testing.assert_allclose(parts.weights[path], weight, rtol=0, atol=STEPS_ATOL)


# Scores


@pytest.fixture(scope="module")
def plain_scores() -> dict[str, float]:
    """Of all logits of rows of one example, by optax."""
    drawn, params = talk.drawn("llama")
    (batch,) = batches(features(talk.questions()), "none")
    model: Any = drawn.merge(params)
    logits_BLV = jax.jit(lambda tokens: model.logits(model(tokens)))(batch.tokens)
    next_BL, wanted_BL = batch.targets["next_BL"], batch.targets["learnt_BL"] > 0
    nll_BL = optax.softmax_cross_entropy_with_integer_labels(logits_BLV, next_BL)
    loss = np.asarray(nll_BL)[wanted_BL].mean(dtype=np.float64)
    hits = np.asarray(logits_BLV.argmax(-1) == next_BL)[wanted_BL].mean(dtype=np.float64)
    return {"loss": loss, "perplexity": np.exp(loss), "token_accuracy": hits}


@pytest.mark.parametrize(
    ("packing", "batch_size", "sizes"),
    [
        ("none", 3, {"data": 1}),
        ("batch", 5, {"data": 1}),
        ("rows", 8, {"data": 4, "fsdp": 2}),
    ],
)
def test_scores_are_of_the_whole_set_however_it_is_cut(
    recipe, plain_scores, packing, batch_size, sizes
):
    more = {
        "data": {**recipe["data"], "packing": packing},
        "train": {**recipe["train"], "eval_batch_size": batch_size},
    }
    run, matched = talk.begin({**recipe, **more}, sizes)
    params = run.experiment.initial_state(run.optimizer, matched).params
    scores, found = run.scorer.scores(params, "validation")
    learnt = [sum(row) for row in run.splits["validation"].features["trained"]]
    np.testing.assert_array_equal(found["tokens_N"], learnt, "in order, without padding")
    assert scores == pytest.approx(plain_scores, rel=SUM_RTOL)
    assert tuple(scores) == Task().score_names
    worst = [mistake["row"] for mistake in run.experiment.task.worst(found, None)]
    assert worst == np.argsort(-found["losses_N"] / found["tokens_N"]).tolist()


# Runs


def test_it_learns_eight_completions_by_heart_and_says_them(recipe):
    asked = {"exact_match": "text", "generate_rows": 5, "max_new_tokens": 24}
    run, matched = talk.begin({**recipe, "task": {**recipe["task"], **asked}})
    experiment = run.experiment
    before = experiment.initial_state(run.optimizer, matched).params
    assert run.scorer.scores(before, "validation")[0]["exact_match"] == 0
    params = talk.learn(run, matched).params
    scores, _ = run.scorer.scores(params, "validation")
    assert scores["token_accuracy"] == 1.0
    assert scores["loss"] < 0.05
    assert scores["exact_match"] == 1.0
    assert tuple(scores) == experiment.task.score_names
    rows = talk.questions()
    prompts = [tokenizer(row["prompt"].rstrip())["input_ids"] for row in rows]
    merge = experiment.rolled.merge
    generate = Generator(merge, params, experiment.mesh, experiment.rows, 1)
    said = generate(prompts, [tokenizer.eos_token_id], Sampling(max_new_tokens=24))
    assert [tokenizer.decode(ids) for ids in said] == [" " + row["completion"] for row in rows]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"task.turns": "last", "task.assistant_only_loss": False}, "leave one of them out"),
        ({"task.top_p": 0.9}, "task.top_p would say how tokens are drawn"),
        ({"task.top_k": 5, "task.top_p": 0.9}, "task.top_k and task.top_p would say how"),
        ({"data.label_column": "stars"}, "data.label_column = 'stars' is of rows with labels"),
        ({"data.text_pair_column": 1}, "data.text_pair_column = 1 is of rows with labels"),
        ({"task.turns": "last", "task.temperature": 1.0, "task.top_p": 0.9}, ""),
    ],
)
def test_pitfall_25_options_that_nothing_would_read_are_refused(keys, said):
    raw: dict[str, Any] = {"model": {"pretrained": "m"}, "data": {"train": "t"}, "task": {}}
    raw["task"]["name"] = "causal_lm"
    for name, value in keys.items():
        home, last = name.split(".")
        raw[home][last] = value
    if not said:
        assert config.from_dict(raw, tasks.options).task.top_p == 0.9
        return
    with pytest.raises(UserError, match="1 problem in the config") as refused:
        config.from_dict(raw, tasks.options)
    assert said in str(refused.value)


def test_exact_match_is_the_share_of_right_answers_among_the_first_rows():
    class Tools:
        tokenizer, positions = byte_tokenizer(), 60

        def generate(self, prompts: list, stop: tuple, sampling: Sampling) -> list[list[int]]:
            assert sampling == Sampling(max_new_tokens=8), "the likeliest answer"
            said = ["it is 1,000", "about 7", "9"]
            return [tokenizer(text)["input_ids"] for text in said[: len(prompts)]]

    rows = [{"prompt": "Add: ", "completion": f"#### {n}"} for n in (1000, 8, 9, 10)]
    split = Rows("rows.jsonl", as_read(rows), "")
    task = Task(exact_match="number", generate_rows=3, max_new_tokens=8, temperature=1.0)
    wanted = task.wanted(split, Tools())
    assert task.generated(wanted, Tools()) == {"exact_match": pytest.approx(2 / 3)}
    assert Task().generated(Task().wanted(split, Tools()), Tools()) == {}
    for row, lack in ({"prompt": "Add: ", "completion": "?"}, "number"), ({"text": "a"}, "answer"):
        split = Rows("rows.jsonl", as_read([rows[0], row]), "")
        with pytest.raises(UserError, match=f"rows.jsonl line 2: .*number finds no {lack} in it"):
            task.wanted(split, Tools())


def test_an_answer_ends_with_the_models_positions():
    """After the last one GPT-2 has no vector to add, and the others have never been trained."""

    class Tools:
        tokenizer, positions, seed = byte_tokenizer(), 20, 0

        def generate(self, prompts: list, stop: tuple, sampling: Sampling) -> list[list[int]]:
            assert stop == (tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(END))
            letter = tokenizer("a")["input_ids"]
            return [letter * sampling.max_new_tokens for _ in prompts]

    asked = [{"prompt": "x" * n} for n in (3, 17, 19, 5)]
    rows = Rows("rows.jsonl", as_read(asked), "")
    said = [row["completion"] for row in Task(max_new_tokens=8).respond(rows, Tools())]
    assert said == ["a" * n for n in (8, 3, 1, 8)]


def test_added_tokens_that_are_learnt_are_said():
    class Tools:
        tokenizer, positions, seed = byte_tokenizer(), 60, 0

        def generate(self, prompts: list, stop: tuple, sampling: Sampling) -> list[list[int]]:
            return [self.tokenizer(taught)["input_ids"] for _ in prompts]

    taught = "<think>so</think> 2 <EUR>"
    add_tokens(Tools.tokenizer, {"<think>": None, "</think>": None, "<EUR>": None}, 1000)
    task = Task(exact_match="text", max_new_tokens=30)
    rows = Rows("rows.jsonl", as_read([{"prompt": "Add: ", "completion": taught}]), "")
    assert list(task.respond(rows, Tools())) == [{"completion": taught}]
    assert task.generated(task.wanted(rows, Tools()), Tools()) == {"exact_match": 1.0}


def test_an_answer_that_the_data_end_themselves_is_right_without_its_end():
    class Tools:
        tokenizer, positions = byte_tokenizer(), 60

        def generate(self, prompts: list, stop: tuple, sampling: Sampling) -> list[list[int]]:
            return [tokenizer("two")["input_ids"] for _ in prompts]

    rows = [
        {"prompt": "1 + 1: ", "completion": f"two{tokenizer.eos_token}\n"},
        {
            "messages": [
                {"role": "user", "content": "?"},
                {"role": "assistant", "content": "two" + END},
            ]
        },
    ]
    task = Task(exact_match="text", max_new_tokens=8)
    for row in rows:
        split = Rows("rows.jsonl", as_read([row]), "")
        assert task.generated(task.wanted(split, Tools()), Tools()) == {"exact_match": 1.0}


def test_pitfall_27_another_chat_template_makes_other_tokens(tmp_path):
    """Of a tokenizer that is the same but for it, in the same cache."""
    data = talk.lines(tmp_path / "rows.jsonl", talk.chats())
    found = []
    for name in ("one", "other"):
        folder = talk.folder(tmp_path / name)
        template = folder / "chat_template.jinja"
        if name == "other":
            template.write_text(template.read_text().replace(END, END + " "))
        (split, _) = talk.begin(talk.recipe(folder, data))[0].splits.values()
        found.append(split.lengths.tolist())
    assert found[0] != found[1]


BAD = {
    "no supervised token": {"prompt": "Mix nothing: ", "completion": " "},
    "answer cut by data.max_length": {"prompt": "Mix: ", "completion": "a" * LIMIT},
}
UNUSABLE = pytest.mark.parametrize(
    "why",
    [
        pytest.param("no supervised token", id="pitfall_3"),
        pytest.param("answer cut by data.max_length", id="pitfall_4"),
    ],
)


def with_bad_row(recipe: dict[str, Any], path: Path, why: str, **data: Any) -> dict[str, Any]:
    rows = [*talk.questions()[:2], BAD[why], *talk.questions()[2:]]
    source = str(talk.lines(path / "bad.jsonl", rows))
    return {**recipe, "data": {**recipe["data"], "train": source, **data}}


@UNUSABLE
def test_pitfall_3_and_4_rows_that_cannot_be_learnt_stop_the_run(recipe, tmp_path, capsys, why):
    words = talk.words(with_bad_row(recipe, tmp_path, why), tmp_path / "run")
    message = runs.refused(capsys, "train", words)
    assert f"1 of 9 rows (11.1%) cannot be learned from: {why} (lines 3)" in message
    assert "data.max_dropped=0.01 allows fewer" in message
    assert not (tmp_path / "run").exists()


@UNUSABLE
def test_pitfall_3_and_4_a_few_of_them_are_dropped_and_counted(recipe, tmp_path, why):
    said: list[str] = []
    raw = with_bad_row(recipe, tmp_path, why, max_dropped=0.12)
    splits = talk.begin(raw, say=said.append)[0].splits
    (line,) = (text for text in said if "cannot be learned" in text)
    assert line.endswith(f"1 of 9 rows (11.1%) cannot be learned from: {why} (lines 3): dropped.")
    assert np.asarray(splits["train"].features["row"][:]).tolist() == [0, 1, 3, 4, 5, 6, 7, 8]


def test_pitfall_4_an_answer_may_be_cut_where_that_is_asked_for(recipe, tmp_path):
    raw = with_bad_row(recipe, tmp_path, "answer cut by data.max_length")
    said: list[str] = []
    raw |= {"task": {**raw["task"], "cut_answers": True}}
    splits = talk.begin(raw, say=said.append)[0].splits
    row = splits["train"].features[2]
    assert len(row["input_ids"]) == LIMIT < row["full_length"]
    assert sum(row["trained"]) == LIMIT - len("Mix:")
    (line,) = (text for text in said if "lose their ends" in text)
    lost = row["full_length"] - LIMIT
    learnt = sum(map(sum, splits["train"].features["trained"])) + lost
    assert line.endswith(
        f"1 of 9 rows (11.1%) have more than data.max_length={LIMIT} tokens and lose their ends, "
        f"with {lost} of {learnt} learnt tokens ({lost / learnt:.1%})."
    )


def test_pitfall_12_a_killed_run_of_full_rows_goes_on_bit_by_bit(recipe, tmp_path, monkeypatch):
    """In the second epoch, between two saves."""
    texts = [{"text": "abcdefghij"[i % 10 :] * (3 + i % 9)} for i in range(48)]
    source = str(talk.lines(tmp_path / "texts.jsonl", texts))
    raw = {
        **recipe,
        "data": {**recipe["data"], "train": source, "validation": source, "packing": "rows"},
        "optim": {"learning_rate": 1e-3},
        "train": {"max_steps": 6, "batch_size": 8, "eval_steps": 6, "logging_steps": 4},
        "checkpoint": {"save_steps": 2},
    }
    train.main(talk.words(raw, tmp_path / "whole"))
    stop = Interrupts.stop

    class Killed(BaseException):
        pass

    def die(self: Interrupts, step: int) -> bool:
        if step == 5:
            raise Killed
        return stop(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(Interrupts, "stop", die)
        with pytest.raises(Killed):
            train.main(talk.words(raw, tmp_path / "killed"))
    assert not (tmp_path / "killed" / "checkpoints" / "6").exists()
    train.main(talk.words(raw, tmp_path / "killed"))
    whole, killed = (runs.arrays(tmp_path / name, 6) for name in ("whole", "killed"))
    assert runs.same(whole, killed)
    assert runs.metrics(tmp_path / "killed") == runs.metrics(tmp_path / "whole")
