"""The task classify: losses as torch defines them, labels in the right order, and that it
learns.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import runs
from sklearn.metrics import precision_recall_fscore_support

from jaxft import tasks
from jaxft.data.batches import BatchSource, put, rows_here
from jaxft.data.plan import Plan
from jaxft.errors import UserError
from jaxft.nn.tokens import Batch, Tokens
from jaxft.scoring import Scorer
from jaxft.sharding import make_mesh
from jaxft.step import TrainState, train_step
from jaxft.store import OnDevice
from jaxft.tasks.classify import Options, Task

torch = pytest.importorskip("torch", reason="torch, the oracle, is not installed")
functional = torch.nn.functional

SINGLE, MULTI, NUMBER = "single_label_classification", "multi_label_classification", "regression"
LABELS = ("blue", "green", "red")
SAME_LOSS = 1e-6
"""Relative difference of a float32 loss between torch and us."""

draw = np.random.default_rng(0)
LOGITS = (3 * draw.normal(size=(7, 3))).astype(np.float32)
CLASSES = np.array([0, 2, 1, 1, 0, 2, 2], np.int32)
SEVERAL = draw.integers(0, 2, (7, 3)).astype(np.float32)
REAL = np.array([1, 1, 1, 1, 1, 0, 0, 0], np.float32)  # in the last three places is no example
CLASS_WEIGHTS = (0.5, 2.0, 1.5)


class Oracle:
    """A model that answers what it was made with."""

    def __init__(self, logits: np.ndarray):
        self.logits = jnp.asarray(logits)

    def __call__(self, *parts: Any, **options: Any) -> None:
        return None

    def classify(self, *parts: Any, examples: int, **options: Any) -> jax.Array:
        assert examples == 2
        return self.logits


def loss(task: Task, logits: np.ndarray, targets: np.ndarray) -> float:
    """Sum over weight, as `step.train_step` divides them, of four rows of two places; in the last
    three is no example.
    """

    def in_rows(values: np.ndarray) -> jax.Array:
        rest = values.shape[1:]
        return jnp.asarray(np.resize(values, (8, *rest)).reshape(4, 2, *rest))

    tokens = Tokens(*(np.zeros((4, 4), np.int32),) * 4)
    batch = Batch(tokens, in_rows(targets), in_rows(REAL), in_rows(np.arange(8)))
    total, weight = task.loss(Oracle(in_rows(logits)), batch, None)
    return float(total / weight)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_one_label_is_torchs_cross_entropy(smoothing):
    ours = loss(Task(SINGLE, LABELS, (1.0,) * 3, smoothing), LOGITS, CLASSES)
    real = [torch.tensor(part[:5]) for part in (LOGITS, CLASSES.astype(np.int64))]
    assert ours == pytest.approx(
        float(functional.cross_entropy(*real, label_smoothing=smoothing)), rel=SAME_LOSS
    )


def test_class_weights_are_torchs():
    ours = loss(Task(SINGLE, LABELS, CLASS_WEIGHTS), LOGITS, CLASSES)
    real = [torch.tensor(part[:5]) for part in (LOGITS, CLASSES.astype(np.int64))]
    theirs = functional.cross_entropy(*real, weight=torch.tensor(CLASS_WEIGHTS))
    assert ours == pytest.approx(float(theirs), rel=SAME_LOSS)


def test_a_class_weight_weighs_the_whole_smoothed_loss_of_its_rows():
    ours = loss(Task(SINGLE, LABELS, CLASS_WEIGHTS, 0.1), LOGITS, CLASSES)
    real = [torch.tensor(part[:5]) for part in (LOGITS, CLASSES.astype(np.int64))]
    losses = functional.cross_entropy(*real, label_smoothing=0.1, reduction="none")
    weights = torch.tensor(CLASS_WEIGHTS)[real[1]]
    assert ours == pytest.approx(float((losses * weights).sum() / weights.sum()), rel=SAME_LOSS)


@pytest.mark.parametrize("weights", [(1.0,) * 3, CLASS_WEIGHTS])
def test_several_labels_are_torchs_binary_cross_entropy(weights):
    ours = loss(Task(MULTI, LABELS, weights), LOGITS, SEVERAL)
    real = [torch.tensor(part[:5]) for part in (LOGITS, SEVERAL)]
    theirs = functional.binary_cross_entropy_with_logits(*real, weight=torch.tensor(weights))
    assert ours == pytest.approx(float(theirs), rel=SAME_LOSS)


def test_a_number_is_torchs_mean_squared_error():
    ours = loss(Task(NUMBER, ("score",), (1.0,)), LOGITS[:, :1], SEVERAL[:, 0])
    theirs = functional.mse_loss(torch.tensor(LOGITS[:5, 0]), torch.tensor(SEVERAL[:5, 0]))
    assert ours == pytest.approx(float(theirs), rel=SAME_LOSS)


GUESSES = {
    "words": (["good", "bad"], {}, SINGLE, ("bad", "good")),
    "whole numbers, in their order": (["10", "9", "-1"], {}, SINGLE, ("-1", "9", "10")),
    "numbers that CSV spells as floats": (["10.0", "0.0", "2"], {}, SINGLE, ("0", "2", "10")),
    "numbers that happen to be floats": ([1.0, 0.0, 2.0], {}, SINGLE, ("0", "1", "2")),
    "truth values": ([True, False], {}, SINGLE, ("False", "True")),
    "digits that Python's int does not read": (["²", "³"], {}, SINGLE, ("²", "³")),
    "fractions": (["0.5", "2"], {}, NUMBER, ("score",)),
    "whole numbers, told to be numbers": (["1", "2"], {"problem_type": NUMBER}, NUMBER, ("score",)),
    "lists": ([["red"], [], ["blue", "red"]], {}, MULTI, ("blue", "red")),
    "a separator": (["red; blue", "", "red"], {"label_separator": ";"}, MULTI, ("blue", "red")),
}


@pytest.mark.parametrize("what", GUESSES)
def test_problem_and_labels_are_read_off_the_data(what):
    cells, options, problem, labels = GUESSES[what]
    task = Task.from_data(Options(**options), cells)
    assert (task.problem, task.labels) == (problem, labels)
    assert Task(**tasks.from_json(json.loads(json.dumps(asdict(task))))) == task


def test_a_batch_of_weightless_rows_changes_nothing_and_stops_nothing():
    """One class may weigh 0, and a batch may hold it alone: 0 / 0 stopped the run."""
    task = Task(SINGLE, LABELS, (0.0, 1.0, 1.0))
    logits, mesh = jnp.ones((8, 3)), make_mesh({"data": 1}, jax.devices()[:1])
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    optimizer = optax.with_extra_args_support(optax.sgd(0.1))
    params = {"logits": logits}
    tokens = Tokens(*(np.zeros((4, 4), np.int32),) * 4)

    def update(*classes: int) -> tuple[TrainState, dict[str, Any]]:
        targets = jnp.asarray(np.resize(np.array(classes, np.int32), (4, 2)))
        batch = Batch(tokens, targets, jnp.ones((4, 2)), jnp.arange(8).reshape(4, 2))
        return train_step(
            TrainState(jnp.int32(0), params, {}, optimizer.init(params)),
            batch,
            jnp.int32(0),
            task=task,
            merge=lambda params: Oracle(params["logits"]),
            optimizer=optimizer,
            gradients={"logits": place},
            seed=0,
            micro_batches=1,
            store=OnDevice({}, {("logits",): place}),
        )

    state, metrics = update(0)
    assert (float(metrics["loss"]), bool(metrics["accepted"])) == (0.0, True)
    assert np.array_equal(state.params["logits"], logits)
    state, _ = update(0, 1)
    assert not np.array_equal(state.params["logits"], logits)


def test_balanced_class_weights_are_scikit_learns():
    from sklearn.utils.class_weight import compute_class_weight

    cells = ["red"] * 5 + ["blue"] * 3 + ["green"]
    task = Task.from_data(Options(class_weights="balanced"), cells)
    expected = compute_class_weight("balanced", classes=np.array(LABELS), y=np.array(cells))
    assert task.weights == pytest.approx(tuple(expected))


UNREAD = {
    "label_smoothing": (["0.5", "1.5"], {"label_smoothing": 0.1}),
    "class_weights": (["0.5", "1.5"], {"class_weights": "balanced"}),
    "label_separator": (["a", "b"], {"label_separator": ";", "problem_type": SINGLE}),
    "label_smoothing of several labels": ([["a"], ["b"]], {"label_smoothing": 0.1}),
}


@pytest.mark.parametrize("what", UNREAD)
def test_pitfall_25_an_option_that_the_problem_does_not_read_is_refused(what):
    cells, options = UNREAD[what]
    with pytest.raises(UserError, match=f"task.{what.split()[0]}=.* says nothing about"):
        Task.from_data(Options(**options), cells)


def test_a_row_of_several_labels_may_have_none():
    task = Task.from_data(Options(label_separator=";"), ["red;blue", "green", ""])
    assert task.kind.targets(["", " red ;green", "blue"], [2, 3, 4], "rows.csv") == [
        [0, 0, 0],
        [0, 1, 1],
        [1, 0, 0],
    ]


def test_answers_are_decoded_as_people_write_them():
    single = Task(SINGLE, LABELS, (1.0,) * 3).kind.decode(np.array([1.0, 3.0, 2.0]))
    assert single["prediction"] == "green"
    assert list(single["scores"]) == list(LABELS)
    assert sum(single["scores"].values()) == pytest.approx(1)
    several = Task(MULTI, LABELS, (1.0,) * 3).kind.decode(np.array([1.0, -3.0, 0.0]))
    assert several["prediction"] == ["blue", "red"]
    assert several["scores"]["blue"] == pytest.approx(1 / (1 + np.exp(-1)))
    assert Task(NUMBER, ("score",), (1.0,)).kind.decode(np.array([2.5])) == {"prediction": 2.5}


def outputs(logits: np.ndarray) -> dict[str, np.ndarray]:
    n = len(logits)
    return {"logits_NC": logits, "losses_N": np.arange(n, dtype=float), "weights_N": np.ones(n)}


def test_scores_begin_with_the_loss_and_the_metric_that_decides():
    for task, targets in (
        (Task(SINGLE, LABELS, (1.0,) * 3), CLASSES),
        (Task(MULTI, LABELS, (1.0,) * 3), SEVERAL),
        (Task(NUMBER, ("score",), (1.0,)), SEVERAL[:, 0]),
    ):
        scores = task.scores(outputs(LOGITS[:, : task.num_labels]), targets)
        assert list(scores)[:2] == ["loss", task.main_metric]
        assert tuple(scores) == task.score_names
        assert scores["loss"] == 3.0


def test_the_worst_mistakes_come_first_and_right_rows_never():
    worst = Task(SINGLE, LABELS, (1.0,) * 3).worst(outputs(LOGITS), CLASSES)
    wrong = np.flatnonzero(LOGITS.argmax(1) != CLASSES)
    assert [mistake["row"] for mistake in worst] == wrong[::-1].tolist()
    assert worst[0]["truth"] == LABELS[CLASSES[wrong[-1]]]
    assert worst[0]["prediction"] == LABELS[LOGITS[wrong[-1]].argmax()]
    numbers = [*LOGITS[:3, 0].tolist(), 0.5]
    worst = Task(NUMBER, ("score",), (1.0,)).worst(outputs(LOGITS[:4, :1]), numbers)
    assert [mistake["row"] for mistake in worst] == [3]


def test_classes_are_counted_as_scikit_learn_counts_them():
    for task, targets in (
        (Task(SINGLE, LABELS, (1.0,) * 3), CLASSES),
        (Task(MULTI, LABELS, (1.0,) * 3), SEVERAL),
    ):
        found = outputs(LOGITS)
        true, answered, right = task.per_class(found, targets.tolist()).T
        theirs = precision_recall_fscore_support(targets, task.kind.answers(LOGITS))
        np.testing.assert_allclose(right / answered, theirs[0])
        np.testing.assert_allclose(right / true, theirs[1])
        np.testing.assert_array_equal(true, theirs[3])
    assert Task(NUMBER, ("score",), (1.0,)).per_class(outputs(LOGITS[:, :1]), SEVERAL[:, 0]) is None


COLLAPSED = {
    "one label": (SINGLE, LOGITS - [[9, 0, 0]] * 7 - [[0, 0, 9]] * 7, CLASSES, "'green'", 2 / 7),
    "several": (MULTI, np.abs(LOGITS) * [[1, -1, 1]], SEVERAL, "'blue' and 'red'", None),
    "no label": (MULTI, -np.abs(LOGITS), SEVERAL, "no label", None),
    "a number": (NUMBER, 2.5 + 1e-5 * LOGITS[:, :1], LOGITS[:, 1], "2.5", None),
}


@pytest.mark.parametrize("what", COLLAPSED)
def test_pitfall_23_the_same_answer_for_all_rows_is_warned_of(what):
    problem, logits, targets, answer, right = COLLAPSED[what]
    task = Task(problem, LABELS if problem != NUMBER else ("score",), (1.0,) * 3)
    said = task.warning(outputs(logits), targets.tolist())
    assert said.startswith(f"The model answers {answer} for all 7 rows (")
    if right is not None:
        assert f"right for {right:.1%} of them" in said
    some = logits.copy()
    some[3] = -some[3] if problem == MULTI else LOGITS[3, : logits.shape[1]]
    assert task.warning(outputs(some), targets.tolist()) is None, "one row has another answer"
    alike = np.repeat(targets[:1], 7, axis=0).tolist()
    assert task.warning(outputs(logits), alike) is None, "all rows are to have one answer"


def fit(keys: dict[str, Any], updates: int = 60) -> tuple[dict[str, float], Scorer, Any]:
    """The scores on its own rows of a tiny BERT without dropout after some updates on one
    device.
    """
    fixed = {
        "model.dropout": 0,
        "model.attention_dropout": 0,
        "optim.learning_rate": 5e-3,
        "data.test": "none",
    }
    fixed |= {"train.max_steps": updates, "optim.lr_scheduler_type": "constant"}
    experiment, splits, matched = runs.assembled(fixed | keys)
    mesh = make_mesh({"data": 1}, jax.devices()[:1])
    experiment = replace(experiment, mesh=mesh)
    optimizer = experiment.optimizer(updates)
    state = experiment.initial_state(optimizer, matched)
    plan = Plan(splits["train"].lengths, runs.BATCH, runs.LENGTH, seed=0, epochs=updates)
    mine = rows_here(plan.shape[0], experiment.rows)
    source = BatchSource(plan, splits["train"].features, experiment.task.collate, updates, mine)
    with jax.set_mesh(mesh):
        traced = experiment.train_step(optimizer).lower(
            state, put(source[0], experiment.rows), np.int32(0)
        )
        step = traced.compile(compiler_options={"xla_backend_optimization_level": 0})
        for k in range(updates):
            state, _ = step(state, put(source[k], experiment.rows), np.int32(k))
    scorer = Scorer(experiment, {"validation": splits["validation"]})
    scores, _ = scorer.scores(state.params, "validation")
    return scores, scorer, state.params


def eight(
    folder: Path, model: Path, content: Sequence[tuple[Any, ...]], header: Sequence[str]
) -> dict[str, Any]:
    path = runs.table(folder / "eight.csv", content, header)
    keys = {"model.pretrained": model, "data.train": path, "data.validation": path}
    return keys | {"data.cache_dir": folder / "tokens"}


def test_it_overfits_eight_examples_of_one_label(tmp_path, tiny_bert_folder):
    scores, *_ = fit(eight(tmp_path, tiny_bert_folder, runs.rows(8, 1), ("text", "label")))
    assert scores["accuracy"] == 1.0
    assert scores["loss"] < 0.05


def test_it_overfits_eight_examples_of_several_labels(tmp_path, tiny_bert_folder):
    texts = [text for text, _ in runs.rows(8, 1)]
    labels = ["red;blue", "red", "", "green;blue", "blue", "red;green", "green", "red;green;blue"]
    keys = eight(
        tmp_path, tiny_bert_folder, list(zip(texts, labels, strict=True)), ("text", "label")
    )
    scores, *_ = fit(keys | {"task.label_separator": ";"}, updates=90)
    assert scores["accuracy"] == 1.0
    assert scores["micro_f1"] == 1.0


def test_it_overfits_eight_numbers_of_pairs_of_texts(tmp_path, tiny_bert_folder):
    """The second text decides, so that it must be read."""
    first = runs.rows(8, 1)[0][0].split()[:6]
    second = [" ".join(text.split()[:4]) for text, _ in runs.rows(8, 2)]
    content = [(" ".join(first), text, i / 4) for i, text in enumerate(second)]
    keys = eight(tmp_path, tiny_bert_folder, content, ("text", "other", "label"))
    scores, *_ = fit(
        keys | {"data.text_pair_column": "other", "task.problem_type": NUMBER}, updates=120
    )
    assert scores["pearson"] > 0.98
    assert scores["mse"] < 0.05


def test_pitfall_17_classes_beyond_count_are_not_laid_out_each_with_each():
    """30000 of them (prices, say) would be 7 GB at every evaluation."""

    def counted(classes: int) -> Any:
        task = Task(SINGLE, tuple(map(str, range(classes))), (1.0,) * classes)
        return task.confusion({"logits_NC": np.eye(4, classes)}, [0, 1, 2, 3])

    assert counted(40).trace() == 4
    assert counted(3000) is None
