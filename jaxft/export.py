"""`python -m jaxft.export`: a run's weights as a Hugging Face folder, read back and compared before
it says done.
"""

import json
import shutil
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxft import flags, models, pretrained
from jaxft.card import model_card
from jaxft.errors import UserError
from jaxft.nn.tokens import Tokens
from jaxft.nn.weights import Path as WeightPath
from jaxft.nn.weights import flatten, unflatten
from jaxft.trained import STEP_HELP, Trained, open_trained
from jaxft.workdir import Workdir

DTYPES = ("float32", "bfloat16", "float16")
SAME_LOGITS = 1e-4
"""Largest difference between our logits and transformers', relative to the largest logit, in
float32.
"""


def main(argv: list[str]) -> None:
    parser = flags.Parser("export", "Write a run's weights as a Hugging Face folder.")
    parser.add_argument("--workdir", required=True, metavar="W", help="folder of the run")
    parser.add_argument("--output", required=True, metavar="D", help="new or empty folder")
    parser.add_argument("--step", default="best", metavar="best|last|N", help=STEP_HELP)
    parser.add_argument("--dtype", default="float32", choices=DTYPES, help="of the file's tensors")
    given = parser.parse(argv)
    say = partial(print, file=sys.stderr, flush=True)
    folder = Path(given.output)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--output={folder} exists and is not an empty folder; choose another one.")
    with open_trained(Workdir(given.workdir), given.step, say) as trained:
        aside = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(aside, ignore_errors=True)
        try:
            export(trained, aside, given.dtype)
        except OSError as error:
            raise UserError(
                f"--output={folder} cannot be written: {error.strerror or error}."
            ) from error
        check(trained, aside, given.dtype, say)
        if folder.exists():
            folder.rmdir()
        aside.rename(folder)
    say(f"Exported step {trained.step}")
    print(folder)


def export(trained: Trained, folder: Path, dtype: str) -> None:
    """Weights, config, tokenizer and model card.

    Raises:
        UserError: a weight is not finite, or would not be in `dtype`.
    """
    experiment = trained.experiment
    params = dict(flatten(trained.params))
    for path, array in params.items():
        with np.errstate(over="ignore"):
            finite = np.isfinite(np.asarray(array).astype(np.dtype(dtype))).all()
        if not finite:
            name = experiment.drawn.weights[path].hf
            raise UserError(
                f"Step {trained.step} has values in {name} that are not finite in {dtype}: not "
                "exported."
            )
    folder.mkdir(parents=True, exist_ok=True)
    experiment.tokenizer.save_pretrained(folder)
    weights = experiment.drawn.weights
    models.write_folder(
        folder, experiment.hf_config, params, weights, output=experiment.drawn.output, dtype=dtype
    )
    for name, content in experiment.task.files(experiment.tokenizer).items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    (folder / "README.md").write_text(model_card(trained))


def check(trained: Trained, folder: Path, dtype: str, say: Any) -> None:
    """Reads the folder back and compares every weight; with torch at hand, transformers' logits
    too.

    Raises:
        RuntimeError: what was written is not what was meant: a bug of ours.
    """
    experiment = trained.experiment
    checkpoint = pretrained.Checkpoint(folder)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shardings = dict.fromkeys(experiment.drawn.weights, device)
    read = pretrained.read(experiment.drawn.match(checkpoint), experiment.drawn.weights, shardings)
    for path, array in flatten(trained.params):
        _compare(path, np.asarray(array), np.asarray(read[path]), dtype)
    said = f"{len(read)} weights read back equal"
    if find_spec("torch") is not None and dtype == "float32":
        difference = logit_difference(trained, folder)
        if not difference <= SAME_LOGITS:
            raise RuntimeError(f"transformers' logits differ by {difference:.1e} from ours")
        said += f", transformers' logits equal to {difference:.0e}"
    say(f"Checked: {said}")


def _compare(path: WeightPath, meant: np.ndarray, found: np.ndarray, dtype: str) -> None:
    if not np.array_equal(meant.astype(np.dtype(dtype)).astype(np.float32), found):
        raise RuntimeError(f"{'/'.join(path)} was not read back as it was written")


def logit_difference(trained: Trained, folder: Path) -> float:
    """Largest difference of the logits on a short row between transformers and jaxft, relative to
    the largest one.
    """
    import torch
    import transformers
    from transformers.utils import logging

    experiment = trained.experiment
    ids = experiment.tokenizer("jaxft compares these logits.")["input_ids"]
    logging.disable_progress_bar()
    auto = getattr(transformers, experiment.module.AUTO_MODEL)
    model = auto.from_pretrained(folder).eval()
    with torch.no_grad():
        theirs = model(input_ids=torch.tensor([ids])).logits.numpy()
    row = np.asarray([ids], np.int32)
    tokens = Tokens(row, np.ones_like(row), np.arange(row.shape[1], dtype=np.int32)[None], 0 * row)
    local = unflatten({path: jnp.asarray(np.asarray(a)) for path, a in flatten(trained.params)})
    merged: Any = experiment.drawn.merge(local)
    ours = jax.jit(lambda t: experiment.task.logits(merged, t))(tokens)
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


if __name__ == "__main__":
    flags.run(main)
