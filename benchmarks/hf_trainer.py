"""The peer's side of `vs_hf_trainer.py`: Hugging Face's Trainer as people write it.

Runs in a process of its own, imports nothing of jaxft, and writes what it measured under the names
that jaxft's result.json has.
"""

import argparse
import csv
import json
import sys
import time
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import torch
import transformers
from datasets import load_dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)


class Clock(TrainerCallback):
    """When the first update began and when each one ended."""

    def __init__(self) -> None:
        self.began_s: float | None = None
        self.ended_s: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.began_s = self.began_s or time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.ended_s.append(time.perf_counter())
        if state.global_step == 1:
            print(f"\nstep 1/{state.max_steps}", file=sys.stderr, flush=True)


class Counter(DataCollatorWithPadding):
    """Pads each batch to its longest row, and notes its rows and real tokens."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer)
        self.seen: list[tuple[int, int]] = []

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().__call__(features)
        self.seen.append((len(features), int(batch["attention_mask"].sum())))
        return batch


def accuracy(predicted: Any) -> dict[str, float]:
    return {"accuracy": float((predicted.predictions.argmax(-1) == predicted.label_ids).mean())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name in ("model", "train", "validation", "workdir", "sampling", "schedule"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("epochs", "learning_rate", "warmup", "weight_decay", "max_grad_norm"):
        parser.add_argument(f"--{name}", type=float, required=True)
    for name in ("batch_size", "max_length", "seed"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--max_steps", type=int, default=-1)
    given = parser.parse_args()

    transformers.set_seed(given.seed)
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    rows = load_dataset(
        "csv",
        data_files={"train": given.train, "validation": given.validation},
        delimiter="\t",
        column_names=["text", "label"],
        quoting=csv.QUOTE_NONE,
        keep_default_na=False,
    )
    tokens = rows.map(
        lambda part: tokenizer(part["text"], truncation=True, max_length=given.max_length),
        batched=True,
        remove_columns=["text"],
    )
    model = AutoModelForSequenceClassification.from_pretrained(
        given.model, num_labels=len(set(rows["train"]["label"])), dtype=torch.float32
    )
    clock, collator = Clock(), Counter(tokenizer)
    trainer = Trainer(
        model,
        TrainingArguments(
            output_dir=given.workdir,
            num_train_epochs=given.epochs,
            max_steps=given.max_steps,
            per_device_train_batch_size=given.batch_size,
            per_device_eval_batch_size=given.batch_size,
            learning_rate=given.learning_rate,
            lr_scheduler_type=given.schedule,
            warmup_steps=given.warmup,
            weight_decay=given.weight_decay,
            max_grad_norm=given.max_grad_norm,
            train_sampling_strategy=given.sampling,
            save_strategy="no",
            report_to="none",
            seed=given.seed,
            use_cpu=True,
        ),
        train_dataset=tokens["train"],
        eval_dataset=tokens["validation"],
        data_collator=collator,
        compute_metrics=accuracy,
        callbacks=[clock],
    )
    trainer.train()
    steps = trainer.state.global_step
    examples, real_tokens = np.array(collator.seen[:steps]).T  # fetched in order, one ahead
    scores = trainer.evaluate()
    took_s, steady_s = (
        clock.ended_s[-1] - since_s for since_s in (clock.began_s, clock.ended_s[0])
    )
    result = {
        "step": steps,
        "validation": {"accuracy": scores["eval_accuracy"], "loss": scores["eval_loss"]},
        "compile_s": 0.0,
        "examples_per_s": examples.sum() / took_s,
        "tokens_per_s": real_tokens.sum() / took_s,
        "steady_examples_per_s": examples[1:].sum() / steady_s if steps > 1 else None,
        "threads": torch.get_num_threads(),
        "versions": {m.__name__: m.__version__ for m in (transformers, accelerate, torch)},
    }
    Path(given.workdir, "result.json").write_text(json.dumps(result, default=float))


if __name__ == "__main__":
    main()
