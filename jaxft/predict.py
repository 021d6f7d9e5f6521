"""`python -m jaxft.predict`: rows in (CSV or JSONL), the same rows with `prediction` and `scores`
out (JSONL).
"""

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jaxft import files, flags
from jaxft.data.cache import cache_key, content_hash
from jaxft.data.echo import read_raw
from jaxft.data.features import Rows, tokenise
from jaxft.generate import Generator
from jaxft.scoring import Outputs, Scorer
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


@dataclass(frozen=True)
class Tools:
    """What a task answers rows with."""

    trained: Trained

    @property
    def tokenizer(self) -> Any:
        return self.trained.experiment.tokenizer

    @property
    def positions(self) -> int:
        """Tokens that the model has positions for."""
        return self.trained.experiment.drawn.dims.max_length

    def outputs(self, rows: Rows) -> Outputs:
        """What `task.predict` gives per row."""
        experiment = self.trained.experiment
        split = tokenise(rows, experiment.task, self.tokenizer, experiment.config.data)
        return Scorer(experiment, {"input": split})(self.trained.params, "input")

    @property
    def generate(self) -> Generator:
        experiment = self.trained.experiment
        merge = experiment.rolled.merge
        return Generator(
            merge, self.trained.params, experiment.mesh, experiment.rows, experiment.row_shards
        )


def predict(trained: Trained, source: str) -> list[dict[str, Any]]:
    """Every row of `source` with what the model says of it; a row without text gets None.

    Raises:
        UserError: the source cannot be read or lacks the text columns.
    """
    experiment = trained.experiment
    module, data = experiment.module, experiment.config.data
    options = module.reading(data, answers=False)
    asked = module.read(source, split="test", **options)
    raw = {name: getattr(data, name) for name in ("delimiter", "quoting", "encoding", "header")}
    texts = [name for name in module.TEXTS if name in asked.column_names]
    echoed = read_raw(source, **raw) or [{name: row[name] for name in texts} for row in asked]
    filled = np.array([all((row[name] or "").strip() for name in texts) for row in asked])
    answers: list[dict[str, Any]] = [dict(experiment.task.silence) for _ in echoed]
    if filled.any():
        places = np.flatnonzero(filled)
        digest = cache_key(content=content_hash(source), predict=True, **options)
        rows = Rows(source, asked.select(places), digest)
        said = experiment.task.respond(rows, Tools(trained))
        for place, answer in zip(places, said, strict=True):
            answers[place] = answer
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
