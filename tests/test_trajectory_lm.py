"""50 updates of supervised fine-tuning on a tiny random Llama: equal to Hugging Face's Trainer,
loss by loss.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import talk

from jaxft.train import Run

torch = pytest.importorskip("torch", reason="torch, the oracle, is not installed")

pytestmark = pytest.mark.usefixtures("hurry")
STEPS = 50
ROWS, BATCH = 90, 32
"""Three updates an epoch, one of them of 26 examples."""
NOT_LEARNT = -100
TRAJECTORY_RTOL = 4e-5
"""As in test_trajectory.py: optax's 1 - beta2^t, in float32, begins 1.3e-5 off torch's. Seen is
9e-6.
"""
SPLIT_RTOL = 3e-6
"""Sums in another order are 1e-7 apart, and Adam makes it more. Seen is 5e-7."""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("trajectory")
    verbs = ("Mix", "Then mix", "Add", "Use", "Try", "Now take", "What gives", "Blend", "And")
    rows = talk.questions(*verbs, "Stir together", "Paint", "So")[:ROWS]
    optim = {
        "learning_rate": 3e-3,
        "lr_scheduler_type": "linear",
        "warmup_steps": 0.1,
        "weight_decay": 0.1,
        "max_grad_norm": 1.0,
    }
    return talk.recipe(
        talk.folder(root),
        talk.lines(root / "rows.jsonl", rows),
        optim=optim,
        train={"max_steps": STEPS, "batch_size": BATCH},
    )


Setting = tuple[str, int, int, str]
"""`data.packing`, micro-batches, `train.batch_size`, the mesh."""
WHOLE: Setting = ("batch", 1, BATCH, "one device")
PARTS: Setting = ("batch", 4, BATCH, "eight devices")
FULL_ROWS: Setting = ("rows", 1, 8, "one device")
MESHES = {"one device": {"data": 1}, "eight devices": {"data": 2, "fsdp": 4}}


@pytest.fixture(scope="module")
def learn(recipe) -> Callable[[Setting], tuple[Run, talk.Seen]]:
    """50 updates by jaxft; each setting is trained once."""

    @cache
    def learn(setting: Setting) -> tuple[Run, talk.Seen]:
        packing, accumulation, batch, mesh = setting
        more = {"gradient_accumulation_steps": accumulation, "batch_size": batch}
        data, train = {**recipe["data"], "packing": packing}, {**recipe["train"], **more}
        run, matched = talk.begin({**recipe, "data": data, "train": train}, MESHES[mesh])
        return run, talk.learn(run, matched)

    return learn


def by_hf_trainer(run: Run, folder: Path) -> dict[str, np.ndarray]:
    """`loss`, `grad_norm` of HF's Trainer on the same examples, each a row of its own, with labels
    where we learn.
    """
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

    accumulation = run.config.train.gradient_accumulation_steps
    rows = [[int(row) for row in run.plan[k][0].ravel() if row >= 0] for k in range(STEPS)]
    micro_batches = [batch[i::accumulation] for batch in rows for i in range(accumulation)]
    features = run.splits["train"].features

    class Examples(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(features)

        def __getitem__(self, i: int) -> dict[str, list[int]]:
            ids, trained = features[i]["input_ids"], features[i]["trained"]
            pairs = zip(ids, trained, strict=True)
            return {"input_ids": ids, "labels": [t if on else NOT_LEARNT for t, on in pairs]}

    def collate(examples: list[dict[str, list[int]]]) -> dict[str, Any]:
        width = max(len(example["input_ids"]) for example in examples)

        def padded(values: list[list[int]], filler: int) -> Any:
            return torch.tensor([row + [filler] * (width - len(row)) for row in values])

        ids = [example["input_ids"] for example in examples]
        return {
            "input_ids": padded(ids, 0),
            "attention_mask": padded([[1] * len(row) for row in ids], 0),
            "labels": padded([example["labels"] for example in examples], NOT_LEARNT),
        }

    class InOrder(Trainer):
        def get_train_dataloader(self) -> Any:
            return torch.utils.data.DataLoader(
                self.train_dataset, batch_sampler=micro_batches, collate_fn=collate
            )

    optim = run.config.optim
    trainer = InOrder(
        AutoModelForCausalLM.from_pretrained(run.config.model.pretrained),
        TrainingArguments(
            output_dir=str(folder),
            max_steps=STEPS,
            gradient_accumulation_steps=accumulation,
            learning_rate=optim.learning_rate,
            lr_scheduler_type=optim.lr_scheduler_type,
            warmup_steps=optim.warmup_steps,
            weight_decay=optim.weight_decay,
            max_grad_norm=optim.max_grad_norm,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=Examples(),
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # two of them wait for each other most of the time at this size
    trainer.train()
    torch.set_num_threads(threads)
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert len(lines) == STEPS
    return {key: np.array([line[key] for line in lines]) for key in ("loss", "grad_norm")}


def gap(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest relative difference of any update."""
    return float(np.abs(ours / theirs - 1).max())


@pytest.mark.parametrize("setting", [WHOLE, PARTS, FULL_ROWS], ids=str)
def test_losses_equal_hf_trainers_step_by_step(learn, tmp_path, setting):
    run, ours = learn(setting)
    theirs = by_hf_trainer(run, tmp_path)
    assert gap(ours.losses, theirs["loss"]) < TRAJECTORY_RTOL
    assert gap(ours.grad_norms, theirs["grad_norm"]) < TRAJECTORY_RTOL
    assert ours.losses[-3:].mean() < 0.5 * ours.losses[:3].mean()


def test_pitfall_1_and_2_losses_depend_on_neither_accumulation_nor_devices(learn):
    (_, one), (_, split) = learn(WHOLE), learn(PARTS)
    assert gap(split.losses, one.losses) < SPLIT_RTOL
    assert gap(split.grad_norms, one.grad_norms) < SPLIT_RTOL
