"""What pretraining is worth on the bundled set: MiniLM, the same architecture from random weights,
and the commonest class, over several seeds.

    python benchmarks/support_tickets_seeds.py --output=docs/support_tickets_seeds.md

Each run is `python -m jaxft.train --config=configs/bert_cls.py` in a process of its own; all else
than the seed and where the weights come from is the recipe's. Further flags go to every run.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MODEL = "sentence-transformers/all-MiniLM-L6-v2"
VARIANTS = {
    "pretrained": [],
    "from scratch": ["--config.model.pretrained=None", f"--config.model.config={MODEL}"],
}
SCORES = ("accuracy", "macro_f1")


def run(flags: list[str], seed: int) -> dict[str, float]:
    """Test scores of one run. Raises RuntimeError with its last lines."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "jaxft.train", "--config=configs/bert_cls.py"]
        command += [f"--workdir={folder}/run", f"--config.seed={seed}", *flags]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-2000:]}")
        result = json.loads(Path(folder, "run", "result.json").read_text())
    return result["test"] | {"commonest": result["baseline"]["test"]["accuracy"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output", help="Markdown file for the table")
    given, flags = parser.parse_known_args()
    rows = ["| weights at the start | " + " | ".join(f"test {s}, %" for s in SCORES) + " |"]
    rows += ["|---|" + "---|" * len(SCORES)]
    commonest = 0.0
    for name, variant in VARIANTS.items():
        found = []
        for seed in range(given.seeds):
            found.append(run(variant + flags, seed))
            shown = ", ".join(f"{s} {100 * found[-1][s]:.1f}" for s in SCORES)
            print(f"{name}, seed {seed}: {shown}", file=sys.stderr, flush=True)
        commonest = found[0]["commonest"]
        rows.append(f"| {name} | " + " | ".join(_spread(found, s) for s in SCORES) + " |")
    rows.append(f"| none: always the commonest class | {100 * commonest:.1f} | |")
    command = " ".join(["python benchmarks/support_tickets_seeds.py", *sys.argv[1:]])
    text = "\n".join([f"Mean (lowest to highest) over {given.seeds} seeds; `{command}`", "", *rows])
    print(text)
    if given.output:
        Path(given.output).write_text(text + "\n")


def _spread(found: list[dict[str, float]], score: str) -> str:
    values = [100 * each[score] for each in found]
    return f"{statistics.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})"


if __name__ == "__main__":
    main()
