"""The peer's side of `vs_hf_trainer.py`: Hugging Face's Trainer as people write it, and TRL's.

Runs in a process of its own, imports nothing of jaxft, and writes what it measured under the names
that jaxft's result.json has.
"""

import argparse
import csv
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import torch
import transformers
from datasets import Dataset, load_dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

NOT_LEARNT = -100
Rows = list[dict[str, Any]]


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


class Counter:
    """A collator that notes its batches' examples and real tokens."""

    def __init__(self, collate: Callable[[Rows], dict[str, Any]]) -> None:
        self.collate = collate
        self.seen: list[tuple[int, int]] = []

    def __call__(self, rows: Rows) -> dict[str, Any]:
        examples = sum(len(row.get("seq_lengths") or [0]) for row in rows)
        self.seen.append((examples, sum(len(row["input_ids"]) for row in rows)))
        return self.collate(rows)


def classify(given: argparse.Namespace, tokenizer: Any, settings: dict[str, Any]) -> Trainer:
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
    return Trainer(
        model,
        TrainingArguments(**settings, train_sampling_strategy=given.sampling),
        train_dataset=tokens["train"],
        eval_dataset=tokens["validation"],
        data_collator=DataCollatorWithPadding(tokenizer),
    )


def accuracy(trainer: Trainer) -> dict[str, float]:
    found = trainer.predict(trainer.eval_dataset)
    hits = found.predictions.argmax(-1) == found.label_ids
    return {"accuracy": float(hits.mean()), "loss": found.metrics["test_loss"]}


def causal_lm(given: argparse.Namespace, tokenizer: Any, settings: dict[str, Any]) -> Trainer:
    rows = load_dataset("json", data_files={"train": given.train, "validation": given.validation})
    kept = rows["train"].column_names
    tokens = rows.map(lambda row: tokenised(row, tokenizer), remove_columns=kept)
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32)
    if given.sampling.startswith("trl"):
        return by_trl(given, model, tokenizer, rows["train"], tokens["validation"], settings)
    train, sampling = tokens["train"], given.sampling
    if sampling == "packed":
        rows_of = json.loads(Path(given.train).with_name("packed.json").read_text())
        train, sampling = Dataset.from_list([packed(train, row) for row in rows_of]), "random"
    arguments = TrainingArguments(
        **settings, train_sampling_strategy=sampling, remove_unused_columns=False
    )
    return Trainer(
        model,
        arguments,
        train_dataset=train,
        eval_dataset=tokens["validation"],
        data_collator=padded,
    )


def tokenised(row: dict[str, str], tokenizer: Any) -> dict[str, list[int]]:
    """Prompt, answer and EOS, labels where a token begins in one of the latter."""
    text = row["prompt"] + row["completion"] + tokenizer.eos_token
    found = tokenizer(text, return_offsets_mapping=True)
    ids, offsets = found["input_ids"], found["offset_mapping"]
    learnt = [start >= len(row["prompt"]) for start, _ in offsets]
    pairs = zip(ids, learnt, strict=True)
    return {"input_ids": ids, "labels": [token if on else NOT_LEARNT for token, on in pairs]}


def packed(tokens: Dataset, members: list[int]) -> dict[str, list[int]]:
    """Examples one after the other; the first token of none is learnt from the one before."""
    examples = [tokens[i] for i in members]
    return {
        "input_ids": [token for example in examples for token in example["input_ids"]],
        "labels": [t for example in examples for t in (NOT_LEARNT, *example["labels"][1:])],
        "seq_lengths": [len(example["input_ids"]) for example in examples],
    }


def padded(rows: Rows) -> dict[str, torch.Tensor]:
    """Rows as wide as the longest. Packed ones get positions that restart and no mask, since
    transformers then makes a block-diagonal one (but only without a cache, which the Trainer turns
    off); what pads them goes on with the last example, which sees none of it.
    """
    width = max(len(row["input_ids"]) for row in rows)

    def filled(values: list[list[int]], filler: int) -> torch.Tensor:
        return torch.tensor([value + [filler] * (width - len(value)) for value in values])

    ids = [row["input_ids"] for row in rows]
    batch = {
        "input_ids": filled(ids, 0),
        "labels": filled([row["labels"] for row in rows], NOT_LEARNT),
    }
    if "seq_lengths" not in rows[0]:
        return {**batch, "attention_mask": filled([[1] * len(row) for row in ids], 0)}
    places = []
    for row in rows:
        *before, last = row["seq_lengths"]
        last += width - len(row["input_ids"])
        places.append(torch.cat([torch.arange(length) for length in (*before, last)]))
    return {**batch, "position_ids": torch.stack(places)}


def by_trl(
    given: argparse.Namespace,
    model: Any,
    tokenizer: Any,
    train: Dataset,
    held_out: Dataset,
    settings: dict[str, Any],
) -> Trainer:
    """TRL tokenises and packs by itself."""
    from trl import SFTConfig, SFTTrainer

    packing = given.sampling == "trl packed"
    arguments = SFTConfig(**settings, max_length=given.max_length, packing=packing)
    trainer = SFTTrainer(model, arguments, train_dataset=train, processing_class=tokenizer)
    trainer.eval_dataset = held_out
    return trainer


def held_out_loss(trainer: Trainer) -> dict[str, float]:
    """Per learnt token, as jaxft scores."""
    total, learnt = 0.0, 0
    model, size = trainer.model.eval(), 8
    rows = list(trainer.eval_dataset)
    with torch.no_grad():
        for start in range(0, len(rows), size):
            batch = padded(rows[start : start + size])
            count = int((batch["labels"][:, 1:] != NOT_LEARNT).sum())
            total += float(model(**batch).loss) * count
            learnt += count
    return {"loss": total / learnt}


TASKS = {"classify": (classify, accuracy), "causal_lm": (causal_lm, held_out_loss)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--task", required=True, choices=TASKS)
    for name in ("model", "train", "validation", "workdir", "sampling", "schedule"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("epochs", "learning_rate", "warmup", "weight_decay", "max_grad_norm"):
        parser.add_argument(f"--{name}", type=float, required=True)
    for name in ("batch_size", "max_length", "seed", "max_steps"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--bf16", required=True, choices=["true", "false"])
    given = parser.parse_args()

    transformers.set_seed(given.seed)
    make, score = TASKS[given.task]
    settings = {
        "output_dir": given.workdir,
        "num_train_epochs": given.epochs,
        "max_steps": given.max_steps,
        "per_device_train_batch_size": given.batch_size,
        "per_device_eval_batch_size": given.batch_size,
        "learning_rate": given.learning_rate,
        "lr_scheduler_type": given.schedule,
        "warmup_steps": given.warmup,
        "weight_decay": given.weight_decay,
        "max_grad_norm": given.max_grad_norm,
        "save_strategy": "no",
        "report_to": "none",
        "seed": given.seed,
        "use_cpu": True,
        "bf16": given.bf16 == "true",
    }
    trainer = make(given, AutoTokenizer.from_pretrained(given.model), settings)
    clock, counter = Clock(), Counter(trainer.data_collator)
    trainer.data_collator = counter
    trainer.add_callback(clock)
    trainer.train()
    steps = trainer.state.global_step
    examples, real_tokens = np.array(counter.seen[:steps]).T  # fetched in order, one ahead
    took_s, steady_s = (
        clock.ended_s[-1] - since_s for since_s in (clock.began_s, clock.ended_s[0])
    )
    result = {
        "step": steps,
        "validation": score(trainer),
        "compile_s": 0.0,
        "examples_per_s": examples.sum() / took_s,
        "tokens_per_s": real_tokens.sum() / took_s,
        "steady_examples_per_s": examples[1:].sum() / steady_s if steps > 1 else None,
        "steady_tokens_per_s": real_tokens[1:].sum() / steady_s if steps > 1 else None,
        "threads": torch.get_num_threads(),
        "versions": {m.__name__: m.__version__ for m in (transformers, accelerate, torch)},
    }
    Path(given.workdir, "result.json").write_text(json.dumps(result, default=float))


if __name__ == "__main__":
    main()
