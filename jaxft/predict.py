"""`python -m jaxft.predict`: rows in (CSV or JSONL), the same rows with `prediction` and `scores`
out (JSONL).
"""

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jaxft import files, flags
from jaxft.data.cache import cache_key, content_hash
from jaxft.data.echo import read_raw
from jaxft.data.features import Rows, tokenise
from jaxft.data.sources import read
from jaxft.scoring import Scorer
from jaxft.trained import STEP_HELP, Trained, open_trained
from jaxft.workdir import Workdir


def main(argv: list[str]) -> None:
    parser = flags.Parser("predict", "Answer rows with a run's weights.")
    parser.add_argument("--workdir", required=True, metavar="W", help="folder of the run")
    parser.add_argument("--input", required=True, metavar="F|-", help="CSV or JSONL; - reads stdin")
    parser.add_argument("--output", metavar="F", help="JSONL; stdout by default")
    parser.add_argument("--step", default="best", metavar="best|last|N", help=STEP_HELP)
    given = parser.parse(argv)
    say = partial(print, file=sys.stderr, flush=True)
    with (
        _input(given.input) as source,
        open_trained(Workdir(given.workdir), given.step, say) as trained,
    ):
        lines = [files.dumps(row) + "\n" for row in predict(trained, source)]
        if given.output:
            files.write_file(given.output, "".join(lines).encode())
            say(f"{len(lines)} rows written to {given.output}")
        else:
            sys.stdout.writelines(lines)


def predict(trained: Trained, source: str) -> list[dict[str, Any]]:
    """Every row of `source` with what the model says of it; a row without text gets None.

    Raises:
        UserError: the source cannot be read or lacks the text columns.
    """
    experiment = trained.experiment
    data, task, module = experiment.config.data, experiment.task, experiment.module
    options: dict[str, Any] = {"delimiter": data.delimiter, "quoting": data.quoting}
    options |= {"encoding": data.encoding, "header": data.header}
    wanted = {name: getattr(data, module.COLUMNS[name]) for name in module.TEXTS}
    asked = read(source, wanted, **options)
    echoed = read_raw(source, **options) or [
        {name: row[name] for name in asked.column_names if name != "line"} for row in asked
    ]
    texts = [name for name in module.TEXTS if name in asked.column_names]
    filled = np.array([all((row[name] or "").strip() for name in texts) for row in asked])
    answers: list[dict[str, Any]] = [{"prediction": None} for _ in echoed]
    if filled.any():
        places = np.flatnonzero(filled)
        digest = cache_key(content=content_hash(source), columns=wanted, predict=True, **options)
        rows = Rows(source, asked.select(places), digest)
        split = tokenise(rows, task, experiment.tokenizer, data)
        outputs = Scorer(experiment, {"input": split})(trained.params, "input")
        for place, logits in zip(places, outputs["logits_NC"], strict=True):
            answers[place] = task.decode(logits)
    return [{**row, **answer} for row, answer in zip(echoed, answers, strict=True)]


@contextmanager
def _input(name: str) -> Iterator[str]:
    """The path to read; stdin goes through a file whose extension its first character decides."""
    if name != "-":
        yield name
        return
    content = sys.stdin.buffer.read()
    kind = "jsonl" if content.lstrip()[:1] in (b"{", b"[") else "csv"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"stdin.{kind}"
        path.write_bytes(content)
        yield str(path)


if __name__ == "__main__":
    flags.run(main)
