"""What continued pretraining forgets, and what mixing in a tenth of the old text saves.

    python benchmarks/forgetting.py --model=../shared/data/checkpoints/stories260K \
        --text=../shared/data/tinyshakespeare/input.txt --output=docs/forgetting.md

The model writes stories of its own first: 200 to be scored and, from another seed, 400 to be mixed
in. It is then continued on the text, whose last tenth is held out, once with the text alone and
once with 10 % of stories. Losses are per token, before and after.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import jaxft
from jaxft import generate
from jaxft.source import load_tokenizer

ROOT = Path(__file__).resolve().parents[1]


def stories(folder: str, count: int, seed: int, tokens: int) -> list[str]:
    """Texts that the model writes by itself, drawn at temperature 1."""
    tokenizer = load_tokenizer(Path(folder))
    model = generate.of_model(jaxft.load_pretrained(folder, output="causal_lm"))
    sampling = generate.Sampling(max_new_tokens=tokens, temperature=1.0, seed=seed)
    start = [tokenizer.bos_token_id]
    drawn = model([start] * count, [tokenizer.bos_token_id, tokenizer.eos_token_id], sampling)
    return [text for ids in drawn if (text := tokenizer.decode(ids).strip())]


def write(path: Path, texts: list[str]) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def run(given: argparse.Namespace, folder: Path, name: str, train: str, sets: dict) -> dict:
    """result.json of one run. Raises RuntimeError with its last lines."""
    keys = {
        "model.pretrained": given.model,
        "model.activation_checkpointing": "none",
        "data.train": train,
        "data.validation": sets["held-out text"],
        "data.evaluations": repr({key.replace(" ", "_"): path for key, path in sets.items()}),
        "data.max_length": 256,
        "optim.learning_rate": given.learning_rate,
        "train.num_train_epochs": given.epochs,
        "train.batch_size": 16,
        "train.eval_steps": 1.0 / 3,
    }
    command = [sys.executable, "-m", "jaxft.train", "--config=configs/clm.py"]
    command += [f"--workdir={folder / name}", *(f"--config.{k}={v}" for k, v in keys.items())]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads((folder / name / "result.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--tokens", type=int, default=200, help="of a story at most")
    parser.add_argument("--output", help="Markdown file for the table")
    given = parser.parse_args()
    given.model = str(Path(given.model).resolve())
    text = Path(given.text).read_text()
    cut = text.index("\n\n", int(0.9 * len(text)))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        old = write(folder / "scored.jsonl", stories(given.model, 200, 1, given.tokens))
        mixed = write(folder / "mixed.jsonl", stories(given.model, 400, 2, given.tokens))
        corpus, held_out = folder / "text.txt", folder / "held_out.txt"
        corpus.write_text(text[:cut])
        held_out.write_text(text[cut:])
        sets = {"held-out text": str(held_out), "its own stories": old}
        trains = {
            "the text alone": str(corpus),
            "with 10 % of stories": repr({str(corpus): 0.9, mixed: 0.1}),
        }
        rows = ["| trained on | " + " | ".join(f"{s}: before | after" for s in sets) + " |"]
        rows += ["|---|" + "---|" * 2 * len(sets)]
        for number, (label, train) in enumerate(trains.items()):
            result = run(given, folder, f"run{number}", train, sets)
            names = [f"eval/{name.replace(' ', '_')}" for name in sets]
            losses = [
                f"{when[name]['loss']:.3f}" for name in names for when in (result["before"], result)
            ]
            rows.append(f"| {label} | " + " | ".join(losses) + " |")
            print(rows[-1], file=sys.stderr, flush=True)
    command = " ".join(["python benchmarks/forgetting.py", *sys.argv[1:]])
    table = "\n".join([f"Loss per token; `{command}`", "", *rows])
    print(table)
    if given.output:
        Path(given.output).write_text(table + "\n")


if __name__ == "__main__":
    main()
