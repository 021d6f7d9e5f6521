"""Generation: transformers' own, token by token, whatever prompts and devices stand beside.

B rows, V vocabulary.
"""

from dataclasses import replace
from functools import cache, partial
from math import prod
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import talk
from jax.sharding import NamedSharding

from jaxft import load_pretrained
from jaxft.errors import NonFiniteAnswers
from jaxft.generate import MULTIPLE, Generator, Sampling, choose, of_model
from jaxft.nn.weights import flatten, unflatten
from jaxft.sharding import ROWS, Places, make_mesh

pytestmark = pytest.mark.usefixtures("hurry")
FAMILIES = ("llama", "qwen3", "gpt2")
LENGTHS = (7, 1, 12, 4, 9)
NEW = 20
GREEDY = Sampling(NEW)
SAMPLED = Sampling(NEW, temperature=0.9, top_k=50, top_p=0.95)
draw = np.random.default_rng(0)
PROMPTS = [draw.integers(4, 260, length).tolist() for length in LENGTHS]
NEVER = (talk.VOCABULARY + 7,)
"""A token to stop at that no model has."""


STD = 0.5
"""Of weights: with smaller ones a model says one thing over and over."""


def generator(family: str = "llama", sizes: dict[str, int] = talk.ONE_DEVICE) -> Generator:
    """A tiny random model on as many devices as the mesh's sizes multiply to."""
    drawn, params = talk.drawn(family, STD)
    mesh = make_mesh(sizes, jax.devices()[: prod(sizes.values())])
    places = Places(drawn.weights, mesh).params
    placed = {path: jax.device_put(x, places[path]) for path, x in flatten(params)}
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    return Generator(drawn.merge, unflatten(placed), mesh, NamedSharding(mesh, ROWS), shards)


@cache
def said(family: str = "llama", sampling: Sampling = GREEDY) -> list[list[int]]:
    """What a model says to each prompt on one device, without an end."""
    return generator(family)(PROMPTS, NEVER, sampling)


def theirs(folder: Path, prompts: list[list[int]], new: int, stop: int | None) -> list[list[int]]:
    """What transformers says to prompts that are padded on the left, up to the stop token."""
    torch = pytest.importorskip("torch", reason="torch, the oracle, is not installed")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    width = max(map(len, prompts))
    padded = [[0] * (width - len(ids)) + ids for ids in prompts]
    mask = [[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts]
    ends = {} if stop is None else {"eos_token_id": stop}
    model.generation_config.eos_token_id = stop
    with torch.no_grad():
        said = model.generate(
            torch.tensor(padded),
            attention_mask=torch.tensor(mask),
            max_new_tokens=new,
            do_sample=False,
            pad_token_id=0,
            **ends,
        )
    rows = [row[width:] for row in said.tolist()]
    return [row[: row.index(stop)] if stop in row else row for row in rows]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_is_transformers_token_by_token_to_the_end(family, tmp_path):
    folder = talk.folder(tmp_path, family, STD)
    found = said(family)
    assert found == theirs(folder, PROMPTS, NEW, None)
    assert [len(answer) for answer in found] == [NEW] * len(PROMPTS)
    assert min(len(set(answer)) for answer in found) > NEW / 4, "models say many things"

    stop = found[0][NEW // 2]
    ended = generator(family)(PROMPTS, (stop, *NEVER), GREEDY)
    assert ended == theirs(folder, PROMPTS, NEW, stop)
    assert ended == [row[: row.index(stop)] if stop in row else row for row in found]
    assert len(ended[0]) <= NEW // 2


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("sizes", [{"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=str)
def test_devices_change_nothing(sizes, sampling):
    assert generator("llama", sizes)(PROMPTS, NEVER, sampling) == said("llama", sampling)


def test_a_real_model_tells_transformers_stories(shared_data):
    folder = shared_data / "checkpoints" / "stories260K"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    pytest.importorskip("torch", reason="torch, the oracle, is not installed")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = ["Once upon a time", "Lily and Tom went to the", "One day, a big dog"]
    prompts = [tokenizer(text)["input_ids"] for text in texts]
    assert len(set(map(len, prompts))) > 1
    answer: Any = of_model(load_pretrained(folder, output="causal_lm"))
    ours = answer(prompts, [tokenizer.eos_token_id], Sampling(100))
    assert ours == theirs(folder, prompts, 100, tokenizer.eos_token_id)
    assert max(map(len, ours)) == 100


# Sampling


@pytest.mark.parametrize("only", [{"top_k": 1}, {"top_p": 1e-6, "top_k": None}], ids=str)
def test_the_likeliest_one_alone_is_greedy(only):
    assert said(sampling=replace(SAMPLED, **only)) == said()


def test_what_is_drawn_depends_on_the_prompt_its_number_and_the_seed_alone():
    answer = generator()
    together = said(sampling=SAMPLED)
    assert answer(PROMPTS[:1], NEVER, SAMPLED) == together[:1]
    # Longer ones beside it, which pad it to another length, and more than one batch of them.
    longer = draw.integers(4, 260, MULTIPLE + 1).tolist()
    among = answer([*PROMPTS, *[longer] * 20], NEVER, SAMPLED)
    assert among[: len(PROMPTS)] == together
    assert len({tuple(row) for row in among[len(PROMPTS) :]}) > 15, "each draws for itself"
    other = said(sampling=replace(SAMPLED, seed=1))
    assert all(a != b for a, b in zip(together, other, strict=True))


def test_prompts_are_answered_in_their_order_in_batches_of_any_size(monkeypatch):
    monkeypatch.setattr("jaxft.generate.BATCH", 2)
    assert generator()(PROMPTS[::-1], NEVER, GREEDY) == said()[::-1]


DRAWS, V = 4000, 12
LOGITS_V = (2 * np.random.default_rng(3).normal(size=V)).astype(np.float32)


def drawn(sampling: Sampling) -> np.ndarray:
    """How often each token is drawn, of `DRAWS` times."""
    keys = jax.random.split(jax.random.key(0), DRAWS)
    logits = jnp.asarray(np.tile(LOGITS_V, (DRAWS, 1)))
    tokens = jax.jit(partial(choose, sampling=sampling))(logits, keys)
    return np.bincount(np.asarray(tokens), minlength=V)


CUTS = [
    Sampling(),
    Sampling(temperature=1.0),
    Sampling(temperature=0.7),
    Sampling(temperature=1.0, top_k=3),
    Sampling(temperature=2.0, top_k=V + 5),
    Sampling(temperature=1.0, top_p=0.6),
    Sampling(temperature=1.0, top_p=0.95),
    Sampling(temperature=1.5, top_k=6, top_p=0.8),
    Sampling(temperature=1.5, top_k=6, top_p=0.01),
]


@pytest.mark.parametrize("sampling", CUTS, ids=str)
def test_tokens_are_drawn_as_often_as_transformers_draws_them(sampling):
    torch = pytest.importorskip("torch", reason="torch, the oracle, is not installed")
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    found = drawn(sampling)
    if sampling.temperature == 0:
        assert found[LOGITS_V.argmax()] == DRAWS
        return
    warpers: list[Any] = [TemperatureLogitsWarper(sampling.temperature)]
    if sampling.top_k is not None:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    warpers.append(TopPLogitsWarper(sampling.top_p))
    logits = torch.tensor(LOGITS_V)[None]
    for warper in warpers:
        logits = warper(None, logits)
    shares = torch.softmax(logits, -1)[0].numpy()
    assert set(np.flatnonzero(found)) <= set(np.flatnonzero(shares)), "none that is not allowed"
    assert set(np.flatnonzero(shares > 0.005)) <= set(np.flatnonzero(found))
    deviation = np.sqrt(DRAWS * shares * (1 - shares))
    assert (np.abs(found - DRAWS * shares) <= 4 * deviation).all()


def test_a_model_that_gives_no_numbers_answers_nothing():
    """The likeliest of NaNs is token 0, and answers would look like some."""
    sound = generator()
    spoilt = jax.tree.map(lambda x: x.at[(0,) * x.ndim].set(jnp.nan), sound.params)
    with pytest.raises(NonFiniteAnswers, match="The model answers 5 of 5 prompts with"):
        replace(sound, params=spoilt)(PROMPTS, NEVER, GREEDY)
