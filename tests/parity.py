"""A family against transformers' torch model: the same weights and rows through both, all compared.

B rows, L tokens, D model width, C classes.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transformers import AutoConfig, AutoModelForSequenceClassification

from jaxft import pretrained, saving
from jaxft.folder import canonical
from jaxft.models import Blueprint
from jaxft.nn.layers import Compute
from jaxft.nn.tokens import Tokens
from jaxft.nn.weights import Tree, flatten, unflatten

torch = pytest.importorskip("torch", reason="torch, the oracle, is not installed")

PARITY = 2e-5
"""Largest error over the largest magnitude of the same array: float32 sums in another order.

Seen are 1e-6 for hidden states and 5e-6 for gradients, over 2 to 6 layers.
"""
ROWS, LENGTH, LABELS = 8, 12, 3
LENGTHS = (12, 7, 3, 1, 9, 12, 5, 10)
# Shifting all attention logits of a query alike changes nothing, so a key's bias has no gradient:
# what float32 leaves of it is compared with the gradient of the key's kernel.
NO_GRADIENT = re.compile(r"(key|k_lin)\.bias$")
# Each field of each family's Dims away from its default (a test checks that).
BERT_LIKE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "hidden_act": "gelu_new",
    "hidden_dropout_prob": 0.2,
    "attention_probs_dropout_prob": 0.3,
    "classifier_dropout": 0.4,
    "max_position_embeddings": 20,
    "type_vocab_size": 3,
    "layer_norm_eps": 1e-3,
    "initializer_range": 0.5,
}
CASES = {
    "bert": BERT_LIKE,
    "roberta": BERT_LIKE | {"hidden_act": "silu", "pad_token_id": 2, "type_vocab_size": 1},
    "distilbert": {
        "vocab_size": 64,
        "dim": 32,
        "n_layers": 2,
        "n_heads": 4,
        "hidden_dim": 48,
        "activation": "relu",
        "dropout": 0.2,
        "attention_dropout": 0.3,
        "seq_classif_dropout": 0.4,
        "max_position_embeddings": 20,
        "initializer_range": 0.5,
    },
}


class Outputs(NamedTuple):
    """What is compared; `grads` by the checkpoint's names."""

    logits: np.ndarray
    hidden: list[np.ndarray]
    grads: dict[str, np.ndarray]


class Arrays:
    """A safetensors file that is a dict of arrays in memory."""

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        self.arrays = arrays

    def get_slice(self, name: str) -> "ArraySlice":
        return ArraySlice(self.arrays[name])


@dataclass(frozen=True)
class ArraySlice:
    array: np.ndarray

    def get_shape(self) -> list[int]:
        return list(self.array.shape)

    def get_dtype(self) -> str:
        return {"float32": "F32", "int64": "I64"}[str(self.array.dtype)]

    def __getitem__(self, index: Any) -> np.ndarray:
        return self.array[index]


class MemoryCheckpoint(pretrained.Checkpoint):
    """A checkpoint whose tensors never were in a file."""

    def __init__(self, config: Mapping[str, Any], arrays: Mapping[str, np.ndarray]):
        super().__init__(Path("memory"))
        file = Arrays(arrays)
        self.__dict__["config"] = dict(config)
        self.__dict__["tensors"] = {canonical(name): (file, name) for name in arrays}


@dataclass(frozen=True)
class Pair:
    """The same weights in transformers' model and in ours."""

    theirs: torch.nn.Module
    drawn: Blueprint
    params: Tree

    @classmethod
    def of(cls, theirs: torch.nn.Module) -> "Pair":
        config = theirs.config.to_dict()
        arrays = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
        drawn = Blueprint.draw(config, output="classify", num_labels=LABELS)
        matched = drawn.match(MemoryCheckpoint(config, arrays))
        assert not matched.new
        return cls(theirs, drawn, unflatten(pretrained.read(matched, drawn.weights)))

    def redrawn(self, **compute: Any) -> "Pair":
        """The same weights, computed in another way."""
        drawn = Blueprint.draw(
            self.drawn.config, output="classify", num_labels=LABELS, compute=Compute(**compute)
        )
        return Pair(self.theirs, drawn, self.params)

    def loss(self, params: Tree, tokens: Tokens, key: jax.Array | None = None) -> tuple:
        """A random projection of the logits and of every hidden state of a real token."""
        model = self.drawn.merge(params)
        hidden = model.hidden_states(tokens, key=key)
        logits_BC = model.classify(hidden[-1], tokens, key=key)[:, 0]
        real_BL1 = tokens.segments_BL[..., None] != 0
        hidden = [jnp.where(real_BL1, x, 0) for x in hidden]
        parts = [logits_BC, *hidden]
        total = sum((x * c).sum() for x, c in zip(parts, projections(parts), strict=True))
        return total, (logits_BC, hidden)

    @cached_property
    def step(self) -> Any:
        return jax.jit(jax.value_and_grad(self.loss, has_aux=True))

    def ours(self, tokens: Tokens, params: Tree | None = None, **kwargs: Any) -> Outputs:
        (_, (logits, hidden)), grads = self.step(
            self.params if params is None else params, tokens, **kwargs
        )
        return Outputs(np.asarray(logits), list(map(np.asarray, hidden)), self.named(grads))

    def named(self, tree: Tree) -> dict[str, np.ndarray]:
        """A tree like the parameters' under the checkpoint's names."""
        flat = {path: np.asarray(leaf) for path, leaf in flatten(tree)}
        prefix = f"{self.drawn.module.PREFIX}."
        tensors = saving.to_tensors(flat, self.drawn.weights, prefix=prefix)
        return {tensor.name: tensor.values for tensor in tensors}

    def expected(self, tokens: Tokens, grads: bool = True) -> Outputs:
        """transformers' answer; positions are given, so that the padding may be on any side."""
        first = self.drawn.dims.encoder.first_position
        inputs = {
            "input_ids": tokens.ids_BL,
            "attention_mask": tokens.segments_BL != 0,
            "position_ids": tokens.positions_BL + first,
        }
        if self.drawn.dims.encoder.types:
            inputs["token_type_ids"] = tokens.types_BL
        self.theirs.zero_grad()
        with torch.set_grad_enabled(grads):
            tensors = {name: torch.tensor(np.asarray(x)).long() for name, x in inputs.items()}
            out = self.theirs(**tensors, output_hidden_states=True)
            real_BL1 = torch.tensor(np.asarray(tokens.segments_BL != 0))[..., None]
            hidden = [torch.where(real_BL1, x, 0) for x in out.hidden_states]
            parts = [out.logits, *hidden]
            coefficients = [torch.tensor(np.asarray(c)) for c in projections(parts)]
            if grads:
                sum((x * c).sum() for x, c in zip(parts, coefficients, strict=True)).backward()
        named = {name: p.grad.numpy() for name, p in self.theirs.named_parameters() if grads}
        return Outputs(out.logits.detach().numpy(), [x.detach().numpy() for x in hidden], named)


def projections(parts: list[Any]) -> list[np.ndarray]:
    """Fixed random coefficients of the same shapes."""
    random = np.random.default_rng(1)
    return [random.normal(size=tuple(x.shape)).astype(np.float32) for x in parts]


def tiny(model_type: str, **fields: Any) -> torch.nn.Module:
    """transformers' model of these config fields; all weights random, of a size that matters."""
    config = AutoConfig.for_model(model_type, num_labels=LABELS, **fields)
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager")
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.3 if parameter.ndim == 2 else 0.2
            parameter.normal_(1.0 if "norm.weight" in name.lower() else 0.0, scale)
    return model.eval()


def random_tokens(vocab: int, types: int, left: bool = False) -> Tokens:
    """ROWS texts of LENGTHS tokens, padded on the right or on the left; the same texts on both."""
    random = np.random.default_rng(0)
    columns = np.zeros((4, ROWS, LENGTH), np.int32)
    for row, length in enumerate(LENGTHS):
        place = slice(LENGTH - length, LENGTH) if left else slice(0, length)
        # Ids from 3 on: 0 and 1 are padding somewhere, and torch has no gradient for that row.
        columns[0, row, place] = random.integers(3, vocab, length)
        columns[1, row, place] = 1
        columns[2, row, place] = np.arange(length)
        columns[3, row, place] = random.integers(0, max(types, 1), length)
    return Tokens(*columns)


def assert_close(ours: np.ndarray, theirs: np.ndarray, what: str, scale: float = 0.0) -> None:
    """Equal to PARITY, relative to `scale`, which is at least the largest magnitude."""
    assert ours.shape == theirs.shape, what
    error = float(np.abs(ours - theirs).max()) / max(scale, float(np.abs(theirs).max()))
    assert error <= PARITY, f"{what}: relative error {error:.1e}"


def assert_same(ours: Outputs, theirs: Outputs) -> None:
    """Logits, every hidden state and the gradient of every weight agree."""
    assert_close(ours.logits, theirs.logits, "logits")
    assert_same_hidden(ours, theirs)
    assert ours.grads.keys() == theirs.grads.keys()
    for name, gradient in theirs.grads.items():
        tied = NO_GRADIENT.sub(r"\1.weight", name)
        scale = float(np.abs(theirs.grads[tied]).max())
        assert scale > 0, f"{name} has no gradient to compare"
        assert_close(ours.grads[name], gradient, f"gradient of {name}", scale)


def assert_same_hidden(ours: Outputs, theirs: Outputs) -> None:
    for i, (mine, other) in enumerate(zip(ours.hidden, theirs.hidden, strict=True)):
        assert_close(mine, other, f"hidden state {i}")
