"""50 updates on a tiny random BERT: equal to Hugging Face's Trainer, however they are split up."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import talk
import trajectory
from talk import ONE_DEVICE
from trajectory import BATCH, ROWS, STEPS, gap

from jaxft.optim import learning_rates_by_depth
from jaxft.train import Run

LEARNING_RATE = 2e-3

TRAJECTORY_RTOL = 2e-4
"""Four times what was seen: optax's 1 - beta2^t, in float32, begins 1.3e-5 off torch's."""
SPLIT_RTOL = 1e-5
"""Seven times what was seen: sums in another order are 1e-7 apart, and Adam makes it more."""
SPLIT_WEIGHTS_ATOL = 5e-6
"""An update moves a weight by up to 2e-3. The attention key's bias is left out: softmax cancels it,
so that its gradient is rounding noise, which Adam blows up."""


class Trajectory(NamedTuple):
    """What 50 updates showed, before each of them."""

    losses: np.ndarray
    grad_norms: np.ndarray
    rates: np.ndarray
    weights: dict[tuple[str, ...], np.ndarray]


Train = Callable[..., Trajectory]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, tiny_bert_folder, tiny_tokenizer) -> dict[str, Any]:
    """A BERT with a head for three classes, and rows of 7 to 14 words that it can learn."""
    torch = pytest.importorskip("torch")
    from transformers import BertConfig, BertForSequenceClassification

    folder = tmp_path_factory.mktemp("trajectory")
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    torch.manual_seed(0)
    config = BertConfig.from_pretrained(
        tiny_bert_folder, **off, num_labels=3, initializer_range=0.1
    )
    model = BertForSequenceClassification(config)
    for name, weight in model.named_parameters():
        if name.endswith("bias"):  # at 0 a decay that they must not have would not show
            torch.nn.init.normal_(weight, std=0.3)
    model.save_pretrained(folder / "model")
    tiny_tokenizer.save_pretrained(folder / "model")
    random, known = np.random.default_rng(0), sorted(tiny_tokenizer.get_vocab())
    words = [word for word in known if word.isalpha()]
    with open(folder / "train.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for _ in range(ROWS):
            text = random.choice(words, random.integers(7, 15)).tolist()
            label = min(2, sum(text.count(word) for word in ("a", "good", "the")))
            writer.writerow([" ".join(text), label])
    return {
        "model": {"pretrained": str(folder / "model")},
        "data": {
            "train": str(folder / "train.csv"),
            "validation": str(folder / "train.csv"),
            "max_length": 16,
            "cache_dir": str(folder / "tokens"),
        },
        "optim": {
            "learning_rate": LEARNING_RATE,
            "lr_scheduler_type": "linear",
            "warmup_steps": 0.1,
            "weight_decay": 0.1,
            "max_grad_norm": 1.0,
        },
        "train": {"max_steps": STEPS, "batch_size": BATCH},
    }


def begin(
    recipe: dict[str, Any], sizes: dict[str, int], **changes: dict[str, Any]
) -> tuple[Run, Any]:
    """A run on as many devices as the mesh's sizes multiply to, and what its checkpoint gives."""
    names = recipe | changes
    raw = {name: {**recipe.get(name, {}), **changes.get(name, {})} for name in names}
    return talk.begin(raw, sizes)


@pytest.fixture(scope="module")
def train(recipe) -> Train:
    """50 updates by jaxft; each setting is trained once."""
    known: dict[str, Trajectory] = {}

    def train(sizes: dict[str, int] = ONE_DEVICE, **changes: dict[str, Any]) -> Trajectory:
        name = repr((sizes, changes))
        if name not in known:
            run, matched = begin(recipe, sizes, **changes)
            known[name] = trained(run, matched)
        return known[name]

    return train


def trained(run: Run, matched: Any) -> Trajectory:
    seen, weights = talk.learn(run, matched), run.experiment.drawn.weights
    rates = learning_rates_by_depth(run.config.optim, weights, run.schedule.total)
    highest = np.array([rates(k).max() for k in range(STEPS)])
    return Trajectory(seen.losses, seen.grad_norms, highest, seen.weights)


def by_hf_trainer(run: Run, folder: Path) -> dict[str, np.ndarray]:
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding

    def global_mean(outputs: Any, labels: Any, num_items_in_batch: Any) -> Any:
        total = torch.nn.functional.cross_entropy(outputs.logits, labels, reduction="sum")
        return total / num_items_in_batch

    columns = run.splits["train"].features.select_columns(["input_ids", "token_type_ids", "target"])
    # Without it transformers 5.23 adds up the means of BERT's micro-batches (its issue 47688)
    whole = run.config.train.gradient_accumulation_steps > 1
    return trajectory.by_hf_trainer(
        run,
        folder,
        AutoModelForSequenceClassification.from_pretrained(run.config.model.pretrained),
        columns.rename_column("target", "labels"),
        DataCollatorWithPadding(run.experiment.tokenizer),
        compute_loss_func=global_mean if whole else None,
    )


@pytest.mark.parametrize(
    ("packing", "schedule", "accumulation", "mesh"),
    [
        ("none", "linear", 1, ONE_DEVICE),
        ("batch", "linear", 1, ONE_DEVICE),
        ("batch", "cosine", 4, {"data": 2, "fsdp": 4}),
    ],
)
def test_losses_equal_hf_trainers_step_by_step(
    recipe, train, tmp_path, packing, schedule, accumulation, mesh
):
    """HF gives each example a row of its own."""
    changes = {
        "data": {"packing": packing},
        "optim": {"lr_scheduler_type": schedule},
        "train": {"gradient_accumulation_steps": accumulation},
    }
    ours = train(mesh, **changes)
    theirs = by_hf_trainer(begin(recipe, mesh, **changes)[0], tmp_path)
    assert gap(ours.losses, theirs["loss"]) < TRAJECTORY_RTOL
    assert gap(ours.grad_norms, theirs["grad_norm"]) < TRAJECTORY_RTOL
    np.testing.assert_allclose(ours.rates, theirs["learning_rate"], rtol=1e-5, atol=1e-9)
    assert ours.losses[-3:].mean() < 0.5 * ours.losses[:3].mean()


@pytest.mark.parametrize("packing", ["batch", "none"])
def test_pitfall_01_accumulation_equals_one_big_batch(recipe, train, packing):
    # A filler weighs 0 and a class its own weight: no two micro-batches weigh the same.
    balanced = {"task": {"class_weights": "balanced"}, "data": {"packing": packing}}
    plan = begin(recipe, ONE_DEVICE, **balanced)[0].plan
    partial = [k for k in range(STEPS) if plan.examples(k) < BATCH]
    assert len(partial) > STEPS // 4
    assert len(set(plan.lengths)) > 4
    parts = train(**balanced, train={"gradient_accumulation_steps": 4})
    assert_same(parts, train(**balanced))


@pytest.mark.parametrize("mesh", [{"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=str)
def test_pitfall_02_losses_do_not_depend_on_the_devices(train, mesh):
    assert_same(train(mesh), train(ONE_DEVICE))


def test_pitfall_02_plan_and_schedule_do_not_depend_on_devices_or_accumulation(recipe):
    epochs = {"num_train_epochs": 2.0, "max_steps": None}
    one, _ = begin(recipe, ONE_DEVICE, train=epochs)
    split = {**epochs, "gradient_accumulation_steps": 4}
    eight, _ = begin(recipe, {"data": 8}, train=split)
    assert one.schedule.total == 2 * -(-ROWS // BATCH)
    assert eight.schedule == one.schedule
    rows, _ = one.plan.shape
    assert eight.plan.shape[0] % (8 * 4) == 0
    for k in range(one.schedule.total):
        (shared_RM, width), (own_RM, same) = eight.plan[k], one.plan[k]
        np.testing.assert_array_equal(shared_RM[:rows], own_RM)
        assert (shared_RM[rows:] == -1).all(), "devices only get empty rows"
        assert width == same


def assert_same(a: Trajectory, b: Trajectory) -> None:
    """Equal but for the order of the sums."""
    assert gap(a.losses, b.losses) < SPLIT_RTOL
    assert gap(a.grad_norms, b.grad_norms) < SPLIT_RTOL
    np.testing.assert_array_equal(a.rates, b.rates)
    for path, weight in a.weights.items():
        if path[-2:] != ("key", "bias"):
            np.testing.assert_allclose(weight, b.weights[path], rtol=0, atol=SPLIT_WEIGHTS_ATOL)
