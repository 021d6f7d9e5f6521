"""Answers to prompts, token by token, with a memory of keys and values.

B rows, P prompt tokens, N new tokens at most, S = P + N, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from jaxft.errors import NonFiniteAnswers
from jaxft.nn.attention import Side
from jaxft.nn.memory import Recall
from jaxft.nn.tokens import Tokens
from jaxft.nn.weights import Tree

BATCH = 16
"""Prompts answered together."""
ENDED, BROKEN = -1, -2
"""Stand for tokens in what a program gives."""
MULTIPLE = 64
"""Prompts are padded to multiples of this, on the left; each length costs a compilation."""

Batch = tuple[Tokens, jax.Array]
"""Prompts and their numbers, by which answers are drawn."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; `temperature` 0 takes the likeliest."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Generator:
    """A causal language model that answers."""

    merge: Callable[[Tree], Any]
    params: Tree
    mesh: jax.sharding.Mesh
    rows: jax.sharding.NamedSharding
    """How rows lie on the devices."""
    shards: int
    """How many parts the rows are split into."""
    programs: dict = field(default_factory=dict, compare=False)
    """Compiled, by the prompts' shape, where they stop and how they draw; shared by the models of a
    run's steps.
    """

    def __call__(
        self, prompts: Sequence[Sequence[int]], stop: Sequence[int], sampling: Sampling
    ) -> list[list[int]]:
        """The tokens that follow each prompt, up to the first of `stop`, which is left out.

        Raises: NonFiniteAnswers: the model's logits are no numbers.
        """
        answers: list[list[int]] = [[]] * len(prompts)
        for members, batch in self._batches(prompts):
            found_BN = np.asarray(self._program(batch, tuple(stop), sampling)(self.params, *batch))
            if broken := np.count_nonzero((found_BN[: len(members)] == BROKEN).any(1)):
                raise NonFiniteAnswers(
                    f"The model answers {broken} of {len(members)} prompts with what is no number; "
                    "these weights are of no use."
                )
            for i, row in zip(members, found_BN.tolist(), strict=False):
                ends = [at for at, token in enumerate(row) if token < 0]
                answers[i] = row[: ends[0]] if ends else row
        return answers

    def compile(
        self, prompts: Sequence[Sequence[int]], stop: Sequence[int], sampling: Sampling
    ) -> None:
        """Compiles the programs that these prompts need; `params` may be abstract."""
        for _, batch in self._batches(prompts):
            self._program(batch, tuple(stop), sampling)

    def _batches(self, prompts: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], Batch]]:
        """Prompts of about one length together, and which they are."""
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        size = -(-min(BATCH, len(prompts)) // self.shards) * self.shards
        for start in range(0, len(order), size):
            members = order[start : start + size]
            tokens = _pad_left([prompts[i] for i in members], size)
            numbers_B = np.resize(np.asarray(members, np.int32), size)
            yield members, jax.device_put((tokens, numbers_B), self.rows)

    def _program(self, batch: Batch, stop: tuple[int, ...], sampling: Sampling) -> Callable:
        key = (batch[0].ids_BL.shape, stop, sampling)
        if key not in self.programs:
            answer = partial(_answer, merge=self.merge, stop=stop, sampling=sampling)
            everywhere = jax.sharding.NamedSharding(self.mesh, jax.sharding.PartitionSpec())
            with jax.set_mesh(self.mesh):
                lowered = jax.jit(answer, out_shardings=everywhere).lower(self.params, *batch)
            self.programs[key] = lowered.compile()
        return self.programs[key]


def _pad_left(prompts: Sequence[Sequence[int]], rows: int) -> Tokens:
    """Prompts of unequal length as rows that all end together; fillers repeat the first."""
    width = -(-max(map(len, prompts)) // MULTIPLE) * MULTIPLE
    ids, segments, positions = (np.zeros((rows, width), np.int32) for _ in range(3))
    for row in range(rows):
        prompt = prompts[row] if row < len(prompts) else prompts[0]
        own = slice(width - len(prompt), width)
        ids[row, own], segments[row, own] = prompt, 1
        positions[row, own] = np.arange(len(prompt))
    return Tokens(ids, segments, positions, np.zeros_like(ids))


def _answer(
    params: Tree,
    prompt: Tokens,
    numbers_B: jax.Array,
    *,
    merge: Callable[[Tree], Any],
    stop: tuple[int, ...],
    sampling: Sampling,
) -> jax.Array:
    """int32 [B, N]: the answers; ENDED from the token on that ends one, BROKEN where the model
    gives no numbers.
    """
    model: Any = merge(params)
    B, P = prompt.ids_BL.shape
    N = sampling.max_new_tokens
    lengths_B = prompt.segments_BL.sum(1)
    new_BN = lengths_B[:, None] + jnp.arange(N, dtype=jnp.int32)
    # Places still empty stand behind every query, which therefore does not see them.
    keys = Side(
        jnp.concatenate([prompt.segments_BL, jnp.ones((B, N), jnp.int32)], axis=1),
        jnp.concatenate([prompt.positions_BL, new_BN], axis=1),
    )
    hidden_BLD, memory = model.extend(
        prompt, model.empty_memory(B, P + N), Recall(jnp.int32(0), keys)
    )
    draws_B = jax.vmap(partial(jax.random.fold_in, jax.random.key(sampling.seed)))(numbers_B)

    def going(state: tuple) -> jax.Array:
        step, done_B = state[0], state[1]
        return (step < N) & ~done_B.all()

    def extend(state: tuple) -> tuple:
        step, done_B, answers_BN, last_BD, memory = state
        keys_B = jax.vmap(partial(jax.random.fold_in, data=step))(draws_B)
        logits_BV = model.logits(last_BD[:, None])[:, 0]
        token_B = choose(logits_BV, keys_B, sampling)
        broken_B = ~done_B & jnp.isnan(logits_BV.max(-1))
        done_B |= broken_B | jnp.isin(token_B, jnp.asarray(stop, jnp.int32))
        said_B = jnp.where(broken_B, BROKEN, jnp.where(done_B, ENDED, token_B))
        answers_BN = answers_BN.at[:, step].set(said_B)
        new_B1 = (lengths_B + step)[:, None]
        tokens = Tokens(token_B[:, None], jnp.ones_like(new_B1), new_B1, jnp.zeros_like(new_B1))
        hidden_BLD, memory = model.extend(tokens, memory, Recall(P + step, keys))
        return step + 1, done_B, answers_BN, hidden_BLD[:, -1], memory

    none_BN = jnp.full((B, N), ENDED, jnp.int32)
    state = (jnp.int32(0), jnp.zeros(B, bool), none_BN, hidden_BLD[:, -1], memory)
    return lax.while_loop(going, extend, state)[2]


def choose(logits_BV: jax.Array, keys_B: jax.Array, sampling: Sampling) -> jax.Array:
    """The next token of each row, int32 [B]. Source: Holtzman et al. 2020 for `top_p`."""
    if sampling.temperature == 0:
        return logits_BV.argmax(-1).astype(jnp.int32)
    logits_BV = logits_BV / sampling.temperature
    lowest = jnp.finfo(jnp.float32).min
    if sampling.top_k is not None and sampling.top_k < logits_BV.shape[-1]:
        kth_B1 = lax.top_k(logits_BV, sampling.top_k)[0][:, -1:]
        logits_BV = jnp.where(logits_BV < kth_B1, lowest, logits_BV)
    if sampling.top_p < 1:
        sorted_BV = -jnp.sort(-logits_BV, axis=-1)
        share_BV = jax.nn.softmax(sorted_BV)
        before_BV = jnp.cumsum(share_BV, axis=-1) - share_BV
        least_B1 = jnp.where(before_BV < sampling.top_p, sorted_BV, jnp.inf).min(-1, keepdims=True)
        logits_BV = jnp.where(logits_BV < least_B1, lowest, logits_BV)
    return jax.vmap(jax.random.categorical)(keys_B, logits_BV).astype(jnp.int32)


def of_model(model: nnx.Module) -> Generator:
    """For a module that is on one device, as `load_pretrained` gives it."""
    graph = nnx.graphdef(model)
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    mesh = jax.make_mesh((1,), ("data",), devices=jax.local_devices()[:1])
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return Generator(partial(nnx.merge, graph), params, mesh, rows, 1)
