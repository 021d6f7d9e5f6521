"""jaxft against Hugging Face's Trainer: the same fine-tuning on CPU, in turn, with equal threads.

    python benchmarks/vs_hf_trainer.py --output=docs/vs_hf_trainer.md
    python benchmarks/vs_hf_trainer.py --task=causal_lm --output=docs/vs_hf_trainer_lm.md
    python benchmarks/vs_hf_trainer.py --seeds=1 --max-steps=4        to see that it works

Both start from one checkpoint, read the same files, and train with AdamW, the same schedule, batch
size, epochs, decay, clipping and dropout, in float32. Sides with "bf16" multiply in bfloat16: HF by
autocast (`bf16=True`), jaxft by `model.matmul_precision=bfloat16`. Each run is a fresh process,
nothing cached (tokens, compiled programs); one update of each beforehand, not counted, warms the
disk.

classify: HF runs as it comes (random batches, padded to their longest row) and with its length
grouping; `python -m jaxft.train` with its own defaults: the texts of an update share rows.
causal_lm: a Llama of 30 M random weights on Alpaca, prompts read and answers learnt. HF as above;
jaxft with its own defaults, and with a row an example (`data.packing=none`). Packed, rows of
--max-length: HF is given the very rows that jaxft packs, with positions that restart, of which
transformers makes a block-diagonal mask; jaxft packs with `data.packing=rows`. TRL runs too where
it is installed.

- examples/s: from the first batch to the last update, compilation inside, evaluation outside.
- steady: without the first update, and for jaxft without those beside a save or evaluation.
- The score is that of the last weights. jaxft evaluates twice at the end, saves once, and writes
  TensorBoard events and a report; HF evaluates once and writes nothing: both are in the whole time.
- peak memory is the process's ru_maxrss, mapped files included.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from measured import ROOT, SHARED_DATA, Comparison, Run, hf_command, jaxft_command, run, table

OURS, RANDOM, GROUPED = "jaxft", "HF Trainer", "HF Trainer, length grouping"
APART = "jaxft, a row an example"
BF16 = ", bf16"
PACKED, HF_PACKED, TRL, TRL_PACKED = "jaxft packed", "HF packed", "TRL", "TRL packed"
REGULARISED = {"warmup": 0.1, "weight_decay": 0.01, "max_grad_norm": 1.0}
MEASURES = {
    "tokens_per_s": ("real tokens/s", "{:,.0f}"),
    "wall_s": ("whole process, s", "{:.0f}"),
    "cpu_s": ("CPU time of it, s", "{:.0f}"),
    "first_update_s": ("start to first update, s", "{:.1f}"),
    "compile_s": ("compilation, s", "{:.1f}"),
    "peak_memory_mb": ("peak memory, MB", "{:,.0f}"),
}
EXAMPLES = {
    "examples_per_s": ("examples/s", "{:.1f}"),
    "steady_examples_per_s": ("steady examples/s", "{:.1f}"),
}
TOKENS = {
    "steady_tokens_per_s": ("steady real tokens/s", "{:,.0f}"),
    "updates": ("updates", "{:.0f}"),
}


def command(
    given: argparse.Namespace, kind: str, seed: int, workdir: str, max_steps: int | None
) -> list[str]:
    """Of a kind of `hf_trainer.py`'s sampling, or of "jaxft" with its packing, and its BF16."""
    kind, narrow = kind.removesuffix(BF16), kind.endswith(BF16)
    peer, _, packing = kind.partition(" ")
    rows = given.packed_batch_size if "packed" in kind or packing == "rows" else given.batch_size
    if peer != "jaxft":
        flags = {
            "model": given.folder,
            "train": given.train,
            "validation": given.validation,
            "sampling": kind,
            "schedule": given.schedule,
            "epochs": given.epochs,
            "learning_rate": given.learning_rate,
            "batch_size": rows,
            "max_length": given.max_length,
            "max_steps": max_steps or -1,
            "seed": seed,
            "bf16": str(narrow).lower(),
            **REGULARISED,
        }
        return hf_command(given.task, workdir, flags)
    keys: dict[str, Any] = {
        "model.pretrained": given.folder,
        "model.matmul_precision": "bfloat16" if narrow else "float32",
        "data.train": given.train,
        "data.validation": given.validation,
        "data.max_length": given.max_length,
        "data.packing": packing,
        "optim.learning_rate": given.learning_rate,
        "optim.lr_scheduler_type": given.schedule,
        "optim.warmup_steps": REGULARISED["warmup"],
        "optim.weight_decay": REGULARISED["weight_decay"],
        "optim.max_grad_norm": REGULARISED["max_grad_norm"],
        "train.batch_size": rows,
        "seed": seed,
    }
    length = "max_steps" if max_steps else "num_train_epochs"
    keys[f"train.{length}"] = max_steps or given.epochs
    if given.task == "causal_lm":
        # There is memory enough: nothing is recomputed, as by the peer.
        keys |= {"model.activation_checkpointing": "none"}
        return jaxft_command("llama_sft.py", workdir, keys)
    columns = {"text_column": 0, "label_column": 1, "delimiter": "\\t", "test": "none"}
    columns |= {"header": "false", "quoting": "false"}
    keys |= {f"data.{name}": value for name, value in columns.items()}
    return jaxft_command("bert_cls.py", workdir, keys)


def classify(given: argparse.Namespace) -> Comparison:
    given.train, given.validation = (
        str(SHARED_DATA / given.data / f"{name}.tsv") for name in ("train", "dev")
    )
    given.folder = located(given.model)
    kinds = {RANDOM: "random", GROUPED: "group_by_length", OURS: "jaxft batch"}
    kinds |= narrowed(kinds, OURS, *[RANDOM, GROUPED] * given.hf_bf16)
    pairs = [(ours, theirs) for ours in (OURS, OURS + BF16) for theirs in (RANDOM, GROUPED)]
    if given.hf_bf16:
        pairs += [(OURS + BF16, theirs + BF16) for theirs in (RANDOM, GROUPED)]
    return Comparison(
        f"{given.data}, {given.model}: {described(given)}",
        {side: partial(command, given, kind) for side, kind in kinds.items()},
        pairs,
        EXAMPLES | MEASURES | {"accuracy_percent": ("dev accuracy, %", "{:.2f}")},
    )


def causal_lm(given: argparse.Namespace, folder: str) -> Comparison:
    """`folder` takes the model and the rows."""
    writer = [sys.executable, str(Path(__file__).with_name("alpaca_llama.py"))]
    writer += [f"--shared={SHARED_DATA}", f"--output={folder}", f"--rows={given.rows}"]
    writer += [f"--held_out={given.held_out}", f"--max_length={given.max_length}"]
    subprocess.run(writer, cwd=ROOT, check=True, capture_output=True)
    given.folder = f"{folder}/model"
    given.train, given.validation = f"{folder}/train.jsonl", f"{folder}/validation.jsonl"
    kinds = {RANDOM: "random", GROUPED: "group_by_length", OURS: "jaxft batch"}
    kinds |= {APART: "jaxft none", HF_PACKED: "packed", PACKED: "jaxft rows"}
    pairs = [(OURS, RANDOM), (OURS, GROUPED), (APART, RANDOM), (PACKED, HF_PACKED)]
    kinds |= narrowed(kinds, OURS, APART, PACKED)
    kinds |= narrowed(kinds, *[RANDOM, GROUPED, HF_PACKED] * given.hf_bf16)
    pairs += [(ours + BF16, theirs) for ours, theirs in pairs]
    if given.hf_bf16:
        pairs += [(ours, theirs + BF16) for ours, theirs in pairs if ours.endswith(BF16)]
    if find_spec("trl"):
        kinds |= {TRL: "trl", TRL_PACKED: "trl packed"}
        pairs += [(OURS, TRL), (PACKED, TRL_PACKED)]
    return Comparison(
        f"{given.rows} rows of Alpaca, a Llama of 30 M random weights, at most {given.max_length} "
        f"tokens: {described(given)}; packed: batch {given.packed_batch_size}",
        {side: partial(command, given, kind) for side, kind in kinds.items()},
        pairs,
        TOKENS | MEASURES | {"held_out_loss": ("loss on held-out rows", "{:.3f}")},
    )


def narrowed(kinds: dict[str, str], *sides: str) -> dict[str, str]:
    return {side + BF16: kinds[side] + BF16 for side in sides}


def described(given: argparse.Namespace) -> str:
    length = f"{given.max_steps} updates" if given.max_steps else f"{given.epochs:g} epoch(s)"
    return (
        f"batch {given.batch_size}, {length}, learning rate {given.learning_rate:g} "
        f"({given.schedule}, warmup {REGULARISED['warmup']:g})"
    )


def located(model: str) -> str:
    """The checkpoint's folder as jaxft finds it; in a process, so that this one stays small."""
    script = "import sys; from jaxft.hub import locate; print(locate(sys.argv[1])[0])"
    asked = [sys.executable, "-c", script, model]
    found = subprocess.run(asked, cwd=ROOT, check=True, capture_output=True, text=True)
    return found.stdout.strip()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--task", default="classify", choices=["classify", "causal_lm"])
    add("--data", default="sst2", help="classify: folder under ../shared/data, train and dev.tsv")
    add("--model", default="sentence-transformers/all-MiniLM-L6-v2", help="classify")
    add("--rows", type=int, default=240, help="causal_lm: to train on")
    add("--held-out", type=int, default=64, help="causal_lm: rows to score")
    add("--batch-size", type=int, help="examples; 32, or 16 for causal_lm")
    add("--packed-batch-size", type=int, default=8, help="causal_lm: rows")
    add("--max-length", type=int, help="256, or 512 for causal_lm")
    add("--epochs", type=float, help="2, or 1 for causal_lm")
    add("--learning-rate", type=float, help="5e-5, or 5e-4 for causal_lm")
    add("--schedule", default="linear", choices=["linear", "cosine"])
    add("--seeds", type=int, help="one repeat each; 3, or 2 for causal_lm")
    add("--hf-bf16", action="store_true", help="HF in bfloat16 as well")
    add("--only", default="", help="sides whose name ends so, such as bf16")
    add("--max-steps", type=int, help="updates instead of epochs, for a quick try")
    add("--threads", type=int, default=len(os.sched_getaffinity(0)))
    add("--output", help="F.md for the table; the runs go to F.json")
    given = parser.parse_args()
    usual = {"batch_size": 32, "max_length": 256, "epochs": 2.0, "learning_rate": 5e-5, "seeds": 3}
    if given.task == "causal_lm":
        usual = {"batch_size": 16, "max_length": 512, "epochs": 1.0}
        usual |= {"learning_rate": 5e-4, "seeds": 2}
    for name, value in usual.items():
        if getattr(given, name) is None:
            setattr(given, name, value)
    return given


def main() -> None:
    given = arguments()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.threads])  # children inherit it
    with tempfile.TemporaryDirectory() as folder:
        compared = classify(given) if given.task == "classify" else causal_lm(given, folder)
        compared = compared.only(given.only)
        for side in compared.sides if given.task == "classify" else compared.pairs[0]:
            run(compared, side, 0, given.threads, max_steps=1)
        runs: list[Run] = []
        for seed in range(given.seeds):
            for side in compared.sides:
                runs.append(run(compared, side, seed, given.threads, given.max_steps))
                measured = compared.measures.items()
                shown = [f"{words} {runs[-1][name] or 0:.2f}" for name, (words, _) in measured]
                print(f"seed {seed}, {side}: {', '.join(shown)}", file=sys.stderr, flush=True)
            if given.output:
                path = Path(given.output)
                path.write_text(table(compared, runs, given.threads))
                path.with_suffix(".json").write_text(json.dumps(runs, indent=1) + "\n")
        print(table(compared, runs, given.threads))


if __name__ == "__main__":
    main()
