"""A decoder of transformers' and ours with the same random weights, and rows to compare them on.

B rows, L tokens, V vocabulary.
"""

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoders import TINY, Config, tiny_config
from parity import MemoryCheckpoint, assert_close, projections
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from jaxft import pretrained, saving
from jaxft.models import Blueprint
from jaxft.nn.layers import Compute
from jaxft.nn.tokens import Tokens
from jaxft.nn.weights import Tree, flatten, unflatten

torch = pytest.importorskip("torch", reason="torch, the oracle, is not installed")
# For layers of 32 units more threads only wait for each other.
torch.set_num_threads(1)

LENGTH, LABELS = 16, 3
LENGTHS = (16, 5, 1, 9, 16, 12, 3, 10)
FAMILIES = tuple(TINY)
KINDS = (
    ("llama", "tied"),
    ("mistral", "window"),
    ("qwen2", "layer_types"),
    ("qwen3", "window"),
    ("gpt2", "by_inverse_layer_idx"),
)
"""One of each family; with layers that differ where it has them."""
AUTO = {"causal_lm": AutoModelForCausalLM, "classify": AutoModelForSequenceClassification}


class Outputs(NamedTuple):
    """What is compared, zero at padding; `grads` by the checkpoint's names."""

    logits: np.ndarray
    hidden: list[np.ndarray]
    grads: dict[str, np.ndarray]


@dataclass(frozen=True)
class Twins:
    """The same weights in transformers' model and in ours."""

    theirs: torch.nn.Module
    drawn: Blueprint
    params: Tree
    jit: bool = False
    """Else operation by operation, layer by layer: nothing to compile for a config of its own."""

    @classmethod
    def of(cls, config: Config, output: str = "causal_lm") -> "Twins":
        theirs = torch_model(config, output)
        arrays = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
        drawn = Blueprint.draw(config, output=output, num_labels=LABELS)
        matched = drawn.match(MemoryCheckpoint(config, arrays))
        assert not matched.new
        return cls(theirs, drawn, unflatten(pretrained.read(matched, drawn.weights)))

    def compiled(self, **compute: Any) -> "Twins":
        """The same weights, under jit and computed in another way."""
        return Twins(self.theirs, self.drawn.redraw(Compute(**compute)), self.params, jit=True)

    def answer(self, params: Tree, tokens: Tokens, key: jax.Array | None) -> list[jax.Array]:
        """Logits and every hidden state, zero at padding."""
        model: Any = self.drawn.merge(params)
        hidden = model.hidden_states(tokens, key=key)
        real_BL1 = tokens.segments_BL[..., None] != 0
        if self.drawn.output == "classify":
            logits = model.classify(hidden[-1], tokens)[:, 0]
        else:
            logits = jnp.where(real_BL1, model.logits(hidden[-1]), 0)
        return [logits, *(jnp.where(real_BL1, x, 0) for x in hidden)]

    @cached_property
    def step(self) -> Any:
        def loss(params: Tree, tokens: Tokens, key: jax.Array | None) -> tuple:
            parts = self.answer(params, tokens, key)
            return sum((x * c).sum() for x, c in zip(parts, projections(parts), strict=True)), parts

        step = jax.value_and_grad(loss, has_aux=True)
        return jax.jit(step) if self.jit else step

    def ours(
        self,
        tokens: Tokens,
        *,
        grads: bool = True,
        key: jax.Array | None = None,
        params: Tree | None = None,
    ) -> Outputs:
        params = self.params if params is None else params
        with nullcontext() if self.jit else jax.disable_jit():
            if grads:
                (_, parts), slopes = self.step(params, tokens, key)
            else:
                parts, slopes = self.answer(params, tokens, key), None
        logits, *hidden = map(np.asarray, parts)
        return Outputs(logits, hidden, self.named(slopes) if grads else {})

    def named(self, tree: Tree) -> dict[str, np.ndarray]:
        """A tree like the parameters' under the checkpoint's names."""
        flat = {path: np.asarray(leaf) for path, leaf in flatten(tree)}
        prefix = self.drawn.module.PREFIX + "."
        tensors = saving.to_tensors(flat, self.drawn.weights, prefix=prefix)
        return {tensor.name: tensor.values for tensor in tensors}

    def expected(self, tokens: Tokens, *, grads: bool = True) -> Outputs:
        """transformers' answer; positions are given, so that the padding may be on any side."""
        self.theirs.zero_grad()
        with torch.set_grad_enabled(grads):
            out = self.theirs(**torch_inputs(tokens), output_hidden_states=True, use_cache=False)
            real_BL1 = torch.tensor(tokens.segments_BL != 0)[..., None]
            logits = out.logits
            if self.drawn.output != "classify":
                logits = torch.where(real_BL1, logits, 0)
            parts = [logits, *(torch.where(real_BL1, x, 0) for x in out.hidden_states)]
            if grads:
                coefficients = map(torch.tensor, projections(parts))
                sum((x * c).sum() for x, c in zip(parts, coefficients, strict=True)).backward()
        slopes = {name: p.grad.numpy() for name, p in self.theirs.named_parameters() if grads}
        logits, *hidden = (x.detach().numpy() for x in parts)
        return Outputs(logits, hidden, slopes)


def torch_model(config: Config, output: str = "causal_lm") -> torch.nn.Module:
    """transformers' model of a config.json; all weights random, of a size that matters."""
    theirs = AutoConfig.for_model(**deepcopy(config), num_labels=LABELS)
    model = AUTO[output].from_config(theirs, attn_implementation="eager")
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            norm = name.endswith("weight") and parameter.ndim == 1
            parameter.normal_(float(norm), 0.3 if parameter.ndim == 2 else 0.2)
    return model.eval()


def torch_inputs(tokens: Tokens) -> dict[str, torch.Tensor]:
    arrays = {
        "input_ids": tokens.ids_BL,
        "attention_mask": tokens.segments_BL != 0,
        "position_ids": tokens.positions_BL,
    }
    return {name: torch.tensor(np.asarray(x)).long() for name, x in arrays.items()}


def texts(lengths: Iterable[int] = LENGTHS, seed: int = 0) -> list[np.ndarray]:
    """Random texts; 0 is the id of padding."""
    random = np.random.default_rng(seed)
    return [random.integers(1, 99, length).astype(np.int32) for length in lengths]


def padded(rows: Sequence[np.ndarray], *, left: bool = False, length: int = LENGTH) -> Tokens:
    """One text a row."""
    return packed([[row] for row in rows], left=left, length=length)


def packed(
    rows: Sequence[Sequence[np.ndarray]], *, left: bool = False, length: int = LENGTH
) -> Tokens:
    """Several texts a row, one behind the other."""
    tokens = Tokens(*np.zeros((4, len(rows), length), np.int32))
    for row, members in enumerate(rows):
        start = length - sum(map(len, members)) if left else 0
        for segment, text in enumerate(members, start=1):
            place = slice(start, start + len(text))
            tokens.ids_BL[row, place] = text
            tokens.segments_BL[row, place] = segment
            tokens.positions_BL[row, place] = np.arange(len(text))
            start += len(text)
    return tokens


def unpacked(x_BLD: np.ndarray, tokens: Tokens) -> list[np.ndarray]:
    """What belongs to each text, row by row and segment by segment."""
    return [
        row[segments == i]
        for row, segments in zip(x_BLD, tokens.segments_BL, strict=True)
        for i in range(1, segments.max() + 1)
    ]


def assert_same(ours: Outputs, theirs: Outputs) -> None:
    """Logits, every hidden state and, where there are any, all gradients agree."""
    assert_close(ours.logits, theirs.logits, "logits")
    for i, (mine, other) in enumerate(zip(ours.hidden, theirs.hidden, strict=True)):
        assert_close(mine, other, f"hidden state {i}")
    assert ours.grads.keys() == theirs.grads.keys()
    for name, gradient in theirs.grads.items():
        assert np.abs(gradient).max() > 0, f"{name} has no gradient to compare"
        assert_close(ours.grads[name], gradient, f"gradient of {name}")


def of_label(family: str, label: str, output: str = "causal_lm") -> Twins:
    return Twins.of(tiny_config(family, label), output)
