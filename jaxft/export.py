"""`python -m jaxft.export`: a run's weights as a Hugging Face folder, read back and compared before
it says done.
"""

import json
import os
import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxft import flags, models, pretrained, saving
from jaxft.card import model_card
from jaxft.errors import UserError
from jaxft.nn.tokens import Tokens
from jaxft.nn.weights import Weight, flatten, unflatten
from jaxft.processes import joined
from jaxft.stderr import Say
from jaxft.trained import STEP_HELP, Trained, open_trained
from jaxft.workdir import Workdir

PARTIAL = ".partial"
DTYPES = ("float32", "bfloat16", "float16")
SAME_LOGITS = 1e-4
"""Largest difference between our logits and transformers', relative to the largest logit, in
float32.
"""
COMPARED_BYTES = 2 * 10**9
"""Of weights at most, for comparing logits: that needs three copies of them on the host."""


def main(argv: list[str]) -> None:
    parser = flags.Parser("export", "Write a run's weights as a Hugging Face folder.")
    parser.add_argument("--workdir", required=True, metavar="W", help="folder of the run")
    parser.add_argument("--output", required=True, metavar="D", help="new or empty folder")
    parser.add_argument("--step", default="best", metavar="best|last|N", help=STEP_HELP)
    parser.add_argument("--dtype", default="float32", choices=DTYPES, help="of the file's tensors")
    flags.add_processes(parser)
    given = parser.parse(argv)
    if "://" in given.output:
        raise UserError(f"--output={given.output}: give a folder on a disk, and copy that.")
    folder = Path(os.path.expanduser(given.output))
    with joined(given) as say:
        write(Workdir(given.workdir), given.step, folder, given.dtype, say)


def write(workdir: Workdir, step: str, folder: Path, dtype: str, say: Say) -> None:
    """A new folder with what a step of a run learnt, or nothing.

    Raises:
        UserError: the folder or the step cannot be used.
    """
    leads = jax.process_index() == 0
    there = folder.exists()
    if there and (not folder.is_dir() or any(path.name != PARTIAL for path in folder.iterdir())):
        raise UserError(f"--output={folder} exists and is not an empty folder; choose another one.")
    # The current folder or a mount cannot be replaced: its files are moved in, config.json last.
    aside = folder / PARTIAL if there else folder.with_name(f".{folder.name}{PARTIAL}")
    with open_trained(workdir, step, say) as trained:
        if leads:
            shutil.rmtree(aside, ignore_errors=True)
        try:
            export(trained, aside, dtype)
            check(trained, aside, dtype, say)
            if leads and not there:
                aside.replace(folder)
            elif leads:
                for path in sorted(aside.iterdir(), key=lambda path: path.name == "config.json"):
                    path.replace(folder / path.name)
        except OSError as error:
            raise UserError(
                f"--output={folder} cannot be written: {error.strerror or error}."
            ) from error
        finally:
            if leads:
                shutil.rmtree(aside, ignore_errors=True)
    say(f"Exported step {trained.step}")
    if leads:
        print(folder)


def export(trained: Trained, folder: Path, dtype: str) -> None:
    """Weights, config, tokenizer and model card; every process takes part and the first writes.

    Raises:
        UserError: a weight is not finite, or would not be in `dtype`.
    """
    experiment = trained.experiment
    models.write_folder(
        folder,
        experiment.hf_config,
        dict(flatten(trained.params)),
        experiment.drawn.weights,
        output=experiment.drawn.output,
        dtype=dtype,
    )
    if jax.process_index() == 0:
        experiment.tokenizer.save_pretrained(folder)
        origin = trained.workdir.read_json("origin.json") or {}
        for name, content in experiment.task.files(experiment.tokenizer, origin).items():
            (folder / name).write_text(json.dumps(content, indent=2) + "\n")
        (folder / "README.md").write_text(model_card(trained, origin.get("base_model")))


def check(trained: Trained, folder: Path, dtype: str, say: Say) -> None:
    """Reads the folder back and compares every weight, block by block; with torch at hand, and a
    model that is not too large for a second copy, transformers' logits too.

    Raises:
        RuntimeError: what was written is not what was meant: a bug of ours.
    """
    leads, weights = jax.process_index() == 0, trained.experiment.drawn.weights
    matched = trained.experiment.drawn.match(pretrained.Checkpoint(folder)) if leads else None
    for path, array in flatten(trained.params):
        weight = weights[path]
        for span in weight.blocks():
            meant = saving.fetch(array, weight, span)
            if matched is not None:
                _compare(weight, meant, pretrained.block(matched, weight, span), dtype)
    said = f"Checked: {len(weights)} weights read back equal"
    if find_spec("torch") is None or dtype != "float32":
        say(said)
    elif jax.process_count() > 1 or 4 * sum(w.size for w in weights.values()) > COMPARED_BYTES:
        say(f"{said}; logits are compared by one process, and up to {COMPARED_BYTES / 1e9:g} GB")
    else:
        difference = logit_difference(trained, folder)
        if not difference <= SAME_LOGITS:
            raise RuntimeError(f"transformers' logits differ by {difference:.1e} from ours")
        say(f"{said}, transformers' logits equal to {difference:.0e}")


def _compare(weight: Weight, meant: np.ndarray, found: np.ndarray, dtype: str) -> None:
    if not np.array_equal(meant.astype(np.dtype(dtype)).astype(np.float32), found):
        raise RuntimeError(f"{weight.name} was not read back as it was written")


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
    # As torch computes: whatever the run's precision and kernel, and what the devices make of them.
    exact = replace(experiment.drawn.compute, dtype="float32", attention="xla")
    drawn = experiment.drawn.redraw(exact)
    with jax.default_device(_host_device()), jax.default_matmul_precision("highest"):
        local = unflatten({path: jnp.asarray(np.asarray(a)) for path, a in flatten(trained.params)})
        merged: Any = drawn.merge(local)
        ours = jax.jit(lambda tokens: experiment.task.logits(merged, tokens))(tokens)
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


def _host_device() -> jax.Device:
    """The CPU, where JAX may use it beside the accelerators."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS names the accelerators alone
        return jax.local_devices()[0]


if __name__ == "__main__":
    flags.run(main)
