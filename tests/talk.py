"""Tiny decoders that read bytes, questions and chats to teach them, and their runs."""

import contextlib
import dataclasses
import io
import json
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import runs

from jaxft import config as configs
from jaxft import tasks, train
from jaxft.data.batches import put
from jaxft.experiment import assemble
from jaxft.models import Blueprint, write_folder
from jaxft.nn.weights import Tree, flatten, unflatten
from jaxft.sharding import make_mesh
from jaxft.source import byte_tokenizer
from jaxft.train import Run
from jaxft.workdir import Workdir

ONE_DEVICE = {"data": 1}
VOCABULARY = 264
"""A little more than the tokenizer has, as hub checkpoints have it."""
COMMON = {"vocab_size": VOCABULARY, "bos_token_id": None, "eos_token_id": 1}
SIZES = COMMON | {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 160,
}
MODELS: dict[str, dict[str, Any]] = {
    "llama": SIZES | {"model_type": "llama", "tie_word_embeddings": True},
    "qwen3": SIZES | {"model_type": "qwen3", "head_dim": 8, "tie_word_embeddings": False},
    "mistral": SIZES | {"model_type": "mistral", "sliding_window": 20},
    "qwen2": SIZES | {"model_type": "qwen2"},
    "gpt2": COMMON
    | {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 160},
}
ANSWERS = {
    "red and blue": "violet",
    "red and yellow": "orange, mostly",
    "blue and yellow": "green",
    "black and white": "grey\nor gray",
    "pink and pink": "pink",
    "white and red": "pink as well",
    "green and red": "brown",
    "all of them": "mud",
}


def questions(*verbs: str) -> list[dict[str, Any]]:
    """Prompts and completions of unlike lengths, eight for each verb."""
    return [
        {"prompt": f"{verb} {question}: ", "completion": answer}
        for verb in verbs or ("Mix",)
        for question, answer in ANSWERS.items()
    ]


def chats() -> list[dict[str, Any]]:
    """Conversations of one and two turns of the assistant."""
    made = []
    for i, (question, answer) in enumerate(ANSWERS.items()):
        turns = [("user", question), ("assistant", answer)]
        turns += [("user", "ok?"), ("assistant", "yes" if i % 2 else "no")] * (i % 2)
        made.append({"messages": [{"role": role, "content": said} for role, said in turns]})
    return made


def lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Writes a JSONL file and returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@cache
def drawn(family: str, std: float = 0.1) -> tuple[Blueprint, Tree]:
    """A tiny model of a family, and random weights for it on one device."""
    made = Blueprint.draw(MODELS[family] | {"initializer_range": std}, output="causal_lm")
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    places = dict.fromkeys(made.weights, device)
    return made, unflatten(made.initialise(set(made.weights), places, seed=1))


def folder(root: Path, family: str = "llama", std: float = 0.1) -> Path:
    """The same as a Hugging Face folder under `root`."""
    made, params = drawn(family, std)
    path = root / family
    arrays = {p: np.asarray(x) for p, x in flatten(params)}
    write_folder(path, made.config, arrays, made.weights, output="causal_lm")
    byte_tokenizer().save_pretrained(path)
    return path


def recipe(model: Path, data: Path, **more: dict[str, Any]) -> dict[str, Any]:
    """A config that trains on all rows of a file and looks at the same ones."""
    fixed = {
        "model": {"pretrained": str(model), "dtype": "float32"},
        "task": {"name": "causal_lm"},
        "data": {
            "train": str(data),
            "validation": str(data),
            "max_length": 128,
            "cache_dir": str(data.parent / "tokens"),
        },
        "optim": {"learning_rate": 1e-2, "warmup_steps": 4, "weight_decay": 0.0},
        "train": {"max_steps": 80, "batch_size": 8},
    }
    return {name: {**fixed.get(name, {}), **more.get(name, {})} for name in fixed | more}


def begin(
    raw: dict[str, Any],
    sizes: Mapping[str, int] = ONE_DEVICE,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[Run, Any]:
    """A run on as many devices as the mesh's sizes multiply to, and what its checkpoint gives."""
    config = configs.from_dict(raw, tasks.options)
    experiment, splits, matched = assemble(config, say)
    mesh = make_mesh(sizes, jax.devices()[: prod(sizes.values())])
    experiment = dataclasses.replace(experiment, mesh=mesh)
    return Run(experiment, splits, Workdir("never written"), say), matched


class Seen(NamedTuple):
    """What updates showed, each before it was made, and what came of them."""

    losses: np.ndarray
    grad_norms: np.ndarray
    params: Tree

    @property
    def weights(self) -> dict[tuple[str, ...], np.ndarray]:
        return {path: np.asarray(value) for path, value in flatten(self.params)}


def learn(run: Run, matched: Any) -> Seen:
    """All updates of a run; nothing is evaluated or written."""
    experiment, seen = run.experiment, []
    state, jitted = experiment.initial_state(run.optimizer, matched), {}
    for k in range(run.schedule.total):
        batch, width = put(run.source[k], experiment.rows), run.plan[k][1]
        if width not in jitted:
            with jax.set_mesh(experiment.mesh):
                traced = experiment.train_step(run.optimizer).lower(state, batch, np.int32(k))
            jitted[width] = traced.compile()
        state, metrics = jitted[width](state, batch, np.int32(k))
        assert metrics["accepted"]
        seen.append((metrics["loss"], metrics["grad_norm"]))
    losses, grad_norms = np.array(seen, np.float64).T
    return Seen(losses, grad_norms, state.params)


def words(raw: dict[str, Any], workdir: Path | None = None) -> list[str]:
    """The command line of a config."""
    given = [
        f"--config.{section}.{key}={value}"
        for section, keys in raw.items()
        for key, value in keys.items()
    ]
    where = [] if workdir is None else [f"--workdir={workdir}"]
    return ["--config=configs/llama_sft.py", *given, *where]


ROWS = {"questions": questions, "chats": chats}


def by_heart(model: Path, data: Path) -> dict[str, Any]:
    """A config that learns eight rows by heart and keeps the weights that answer them."""
    task = {"exact_match": "text", "max_new_tokens": 32}
    keep = {"metric_for_best_model": "exact_match", "keep_last": 1, "keep_best": 1}
    return recipe(model, data, task=task, checkpoint=keep, train={"eval_steps": 40})


@cache
def finished(root: Path, family: str, rows: str) -> runs.Finished:
    """A run that learns eight rows by heart, made once for all tests; not to be written into."""
    place = root / f"{family}_{rows}"
    data = lines(place / "rows.jsonl", ROWS[rows]())
    raw = by_heart(folder(place, family), data)
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        train.main(words(raw, place / "run"))
    result = json.loads((place / "run" / "result.json").read_text())
    keys = {"model.pretrained": str(place / family), "data.train": str(data)}
    return runs.Finished(place / "run", keys, result, err.getvalue())
