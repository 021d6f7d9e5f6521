"""Whether supervised fine-tuning on short answers teaches a small model where to stop.

    python benchmarks/learns_to_stop.py    # --output=table.md keeps the table

stories260K, which tells stories and knows no questions, is fine-tuned on nine parts of Alpaca and
one of `chats/identity.json`, on rows whose answers have at most 96 tokens of its own. Counted are,
before and after, the answers to 50 held-out prompts of the same kind that end with EOS within 128
tokens, the likeliest answer and one drawn at temperature 1.

So small a model is unsure what to say, and goes in circles where the likeliest token is taken. With
`--rows=100 --epochs=60` it learns its rows by heart, and always stops: docs/learns_to_stop.md.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from measured import ROOT, SHARED_DATA, hardware, jaxft_command

import jaxft
from jaxft import generate
from jaxft.data.supervision import prompt_ids, stop_ids
from jaxft.source import load_tokenizer

SOURCES = {"alpaca/alpaca_5000.json": 0.9, "chats/identity.json": 0.1}
WITHIN, ANSWER, WHOLE, HELD_OUT = 128, 96, 256, 50
HOW = {"likeliest": 0.0, "drawn": 1.0}
Rows = list[dict[str, Any]]


def short(path: Path, tokenizer: Any) -> Rows:
    """Rows of a file whose answers, and which as a whole, are short, in a random order."""
    rows = json.loads(path.read_text())
    prompts = prompt_ids(rows, tokenizer, None, [path.name] * len(rows))
    answers = [tokenizer(row["output"])["input_ids"] for row in rows]
    fits = [
        row
        for row, prompt, answer in zip(rows, prompts, answers, strict=True)
        if 1 < len(answer) <= ANSWER and len(prompt) + len(answer) < WHOLE
    ]
    return [fits[i] for i in np.random.default_rng(0).permutation(len(fits))]


def answers(folder: str, rows: Rows, temperature: float) -> list[list[int]]:
    """What follows the prompts, `WITHIN` tokens at most."""
    tokenizer = load_tokenizer(Path(folder))
    prompts = prompt_ids(rows, tokenizer, None, [""] * len(rows))
    model = generate.of_model(jaxft.load_pretrained(folder, output="causal_lm"))
    sampling = generate.Sampling(max_new_tokens=WITHIN, temperature=temperature)
    return model(prompts, stop_ids(tokenizer), sampling)


def circles(answer: list[int]) -> bool:
    """Whether an answer ends with at most 32 tokens over and over."""
    end = answer[-64:]
    return any(end[period:] == end[:-period] for period in range(1, 33))


def line(when: str, folder: str, held_out: Rows, loss: str = "") -> str:
    """A model's row of the table."""
    cells = [when, loss]
    for temperature in HOW.values():
        given = answers(folder, held_out, temperature)
        lengths = [len(answer) for answer in given if len(answer) < WITHIN]
        median = f", median {np.median(lengths):.0f} tokens" if lengths else ""
        circling = sum(circles(answer) for answer in given if len(answer) == WITHIN)
        cells.append(f"{len(lengths)} of {len(held_out)}{median}; {circling} go in circles")
    return f"| {' | '.join(cells)} |"


def fine_tune(
    given: argparse.Namespace, seed: int, folder: Path, parts: dict[str, Rows]
) -> tuple[str, str]:
    """Trains and exports; the export's folder and the held-out loss. Raises RuntimeError with the
    last lines.
    """
    paths = {name: folder / f"{name}.jsonl" for name in parts}
    for name, rows in parts.items():
        paths[name].write_text("".join(json.dumps(row) + "\n" for row in rows))
    mixture = {str(paths[Path(name).stem]): weight for name, weight in SOURCES.items()}
    keys = {
        "model.pretrained": given.model,
        "model.activation_checkpointing": "none",
        "data.train": repr(mixture),
        "data.validation": paths["held_out"],
        "data.max_length": WHOLE,
        "optim.learning_rate": given.learning_rate,
        "train.num_train_epochs": given.epochs,
        "train.batch_size": given.batch_size,
        "seed": seed,
    }
    run, exported = folder / "run", folder / "exported"
    export = [sys.executable, "-m", "jaxft.export", f"--workdir={run}", f"--output={exported}"]
    for command in (jaxft_command("llama_sft.py", str(run), keys), [*export, "--step=last"]):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
    result = json.loads((run / "result.json").read_text())
    return str(exported), f"{result['validation']['loss']:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    model = SHARED_DATA / "checkpoints" / "stories260K"
    parser.add_argument("--model", default=str(model))
    parser.add_argument("--rows", type=int, default=2000, help="of Alpaca at most")
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=1, help="runs")
    parser.add_argument("--output", help="Markdown file for the table")
    given = parser.parse_args()
    tokenizer = load_tokenizer(Path(given.model))
    parts: dict[str, Rows] = {"held_out": []}
    for name, weight in SOURCES.items():
        rows, count = short(SHARED_DATA / name, tokenizer), round(HELD_OUT * weight)
        parts["held_out"] += rows[:count]
        parts[Path(name).stem] = rows[count : count + given.rows]
    lines = [line("before", given.model, parts["held_out"])]
    began_s = time.perf_counter()
    for seed in range(given.seeds):
        with tempfile.TemporaryDirectory() as folder:
            exported, loss = fine_tune(given, seed, Path(folder), parts)
            lines.append(line(f"after, seed {seed}", exported, parts["held_out"], loss))
    took_s = time.perf_counter() - began_s
    counts = ", ".join(f"{len(rows)} of {name}" for name, rows in parts.items())
    command = " ".join(["python benchmarks/learns_to_stop.py", *sys.argv[1:]])
    table = [
        f"Answers that end within {WITHIN} tokens; `{command}`, {took_s:.0f} s on {hardware()}.",
        f"Rows: {counts}; {given.epochs:g} epochs, learning rate {given.learning_rate:g}, "
        f"batch {given.batch_size}.",
        "",
        f"| fine-tuning | held-out loss | {' | '.join(HOW)} |",
        "|---" * (2 + len(HOW)) + "|",
        *lines,
    ]
    print("\n".join(table))
    if given.output:
        Path(given.output).write_text("\n".join(table) + "\n")


if __name__ == "__main__":
    main()
