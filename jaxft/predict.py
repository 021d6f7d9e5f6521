"""`python -m jaxft.predict`: rows in (CSV or JSONL), the same rows with `prediction` and `scores`,
or with `completion`, out (JSONL). What the rows already have is kept.
"""

import codecs
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path, PurePath
from typing import Any, BinaryIO

import numpy as np

from jaxft import files, flags
from jaxft.data.echo import read_raw
from jaxft.data.features import Rows
from jaxft.data.sources import DELIMITERS, PACKED, PARQUET, refuse_unread
from jaxft.errors import UserError
from jaxft.experiment import Experiment
from jaxft.generate import Sampling
from jaxft.processes import joined, process_count, process_index
from jaxft.scoring import Tools
from jaxft.stderr import Say
from jaxft.trained import STEP_HELP, Trained, in_place_of_keys, open_trained
from jaxft.workdir import Workdir

OURS = "model_"
"""Goes before the name of an answer whose column the rows have already."""
SAMPLING = {
    "max_new_tokens": "tokens at most",
    "temperature": "0 takes the likeliest token",
    "top_k": "draw among the k likeliest",
    "top_p": "draw among the likeliest that hold p",
    "seed": "to draw with",
}
"""Flags that replace the run's own keys of `task`."""
OTHER_FORMATS = (*DELIMITERS, PARQUET, *PACKED)
"""Extensions that would make every reader take what is written for something else."""
DRAWING = {"top_k", "top_p", "seed"}
"""Those of them that nothing reads at temperature 0."""


def main(argv: list[str]) -> None:
    parser = flags.RowsParser(
        "predict",
        "Answer rows with a run's weights. Each row is written with `prediction` and `scores`, or "
        f"with `completion`; where the rows have such a column, with `{OURS}completion` beside it.",
        flags.READING,
    )
    parser.add_argument("--workdir", required=True, metavar="W", help="folder of the run")
    parser.add_argument("--input", required=True, metavar="F|-", help="rows; - reads stdin")
    parser.add_argument("--output", metavar="F", help="JSONL; stdout by default")
    parser.add_argument("--step", default="best", metavar="best|last|N", help=STEP_HELP)
    for name, what in SAMPLING.items():
        parser.add_argument(f"--{name}", metavar="X", help=f"of generated answers: {what}")
    flags.add_processes(parser)
    given, overrides = parser.given(argv)
    words = {name: word for name in SAMPLING if (word := getattr(given, name)) is not None}
    with (
        joined(given) as say,
        _input(given.input) as source,
        open_trained(Workdir(given.workdir), given.step, say, overrides) as trained,
        _output(given.output) as output,
    ):
        refuse_unread(overrides, [source])
        experiment, seed = sampled(trained.experiment, words)
        rows = predict(replace(trained, experiment=experiment), source, seed, say)
        output.writelines(f"{files.dumps(row)}\n".encode() for row in rows)
    if given.output:
        say(f"{len(rows)} rows written to {given.output}")


def sampled(experiment: Experiment, words: Mapping[str, str]) -> tuple[Experiment, int]:
    """The experiment with the command line's options of generation in place of the run's, and the
    seed to draw with.

    Raises:
        UserError: its task writes no answers, or a value is not allowed or not read.
    """
    read = in_place_of_keys(experiment, words, SAMPLING)
    seed = read.pop("seed", Sampling().seed)
    task = replace(experiment.task, **read)
    if words and task.temperature == 0 and (unread := [f"--{name}" for name in DRAWING & {*words}]):
        raise UserError(
            f"{', '.join(sorted(unread))}: tokens are drawn above temperature 0 alone; at 0 the "
            "likeliest is taken. Give --temperature=0.7, say, or leave that away."
        )
    return replace(experiment, task=task), seed


def predict(trained: Trained, source: str, seed: int, say: Say) -> list[dict[str, Any]]:
    """Every row of `source` with what the model says of it; a row without text gets None.

    Raises:
        UserError: the source cannot be read or lacks the text columns.
    """
    experiment = trained.experiment
    module, data = experiment.module, experiment.config.data
    options = module.reading(data, answers=False)
    asked = module.read(source, split="test", **options)
    positions = [at for at in (data.text_column, data.text_pair_column) if isinstance(at, int)]
    echoed = read_raw(
        source, split="test", columns=1 + max(positions, default=0), **data.text_format
    )
    texts = [name for name in module.TEXTS if name in asked.column_names]
    filled = np.array([all((row[name] or "").strip() for name in texts) for row in asked])
    if blank := np.asarray(asked["line"][:])[~filled].tolist():
        listed = f"{', '.join(map(str, blank[:5]))}{', ...' if len(blank) > 5 else ''}"
        say(f"{source}: {len(blank)} of {len(asked)} rows are blank (lines {listed}) and get null.")
    answers: list[dict[str, Any]] = [dict(experiment.task.silence) for _ in echoed]
    if filled.any():
        places = np.flatnonzero(filled)
        rows = Rows(source, asked.select(places), digest="")
        said = experiment.task.respond(rows, Tools(experiment, trained.params, seed, say=say))
        for place, answer in zip(places, said, strict=True):
            answers[place] = answer
    return _beside(echoed, answers, say)


def _beside(
    rows: Sequence[dict[str, Any]], answers: Sequence[dict[str, Any]], say: Say
) -> list[dict[str, Any]]:
    """Rows with their answers, under other names where the rows have columns of these."""
    known, ours = ({name for row in side for name in row} for side in (rows, answers))
    renamed = {name: OURS + name if name in known else name for name in sorted(ours)}
    if twice := known & set(renamed.values()):
        raise UserError(f"The rows have {', '.join(map(repr, sorted(twice)))}: rename that.")
    for name in sorted(ours & known):
        say(f"The rows have {name!r}; what the model says is in {renamed[name]!r}.")
    return [
        {**row, **{renamed[name]: said for name, said in answer.items()}}
        for row, answer in zip(rows, answers, strict=True)
    ]


@contextmanager
def _input(name: str) -> Iterator[str]:
    """The path to read; stdin goes through a file whose extension its first character decides."""
    if name != "-":
        yield name
        return
    if process_count() > 1:
        raise UserError("--input=-: each of several processes would read a stdin of its own.")
    content = sys.stdin.buffer.read().removeprefix(codecs.BOM_UTF8)
    kind = "jsonl" if content.lstrip()[:1] in (b"{", b"[") else "csv"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"stdin.{kind}"
        path.write_bytes(content)
        yield str(path)


@contextmanager
def _output(name: str | None) -> Iterator[BinaryIO]:
    """Where the rows go, once; a file that cannot be written is known before they are computed."""
    if process_index() > 0:
        yield BytesIO()
        return
    if name is None:
        yield sys.stdout.buffer
        return
    if (extension := PurePath(name.lower()).suffix) in OTHER_FORMATS:
        raise UserError(
            f"--output={name}: what is written is JSONL, an object a line, which nobody looks for "
            f"in a {extension} file; let the name end in .jsonl."
        )
    try:
        with files.replacing(name) as file:
            yield file
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"--output={name} cannot be written: {reason}.") from error


if __name__ == "__main__":
    flags.run(main)
