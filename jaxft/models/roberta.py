"""RoBERTa. Source: Liu et al. 2019; transformers 5.23 `models/roberta`."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from jaxft.nn.encoder import BlockNames, EncoderDims, PostNormEncoder
from jaxft.nn.fields import Harmless
from jaxft.nn.layers import Compute, Linear, dropout, split
from jaxft.nn.tokens import Tokens, first_token

PREFIX = "roberta"
ARCHITECTURES = {None: "RobertaModel", "classify": "RobertaForSequenceClassification"}
HARMLESS_FIELDS = {
    "position_embedding_type": Harmless("positions are absolute", only=("absolute",)),
}
UNUSED_TENSORS = {
    r"lm_head\..*": "the pretraining head (masked words)",
    r"embeddings\.position_ids": "a constant that old versions saved",
    r"pooler\..*": "the classification head has a dense layer of its own",
}
NEW_TENSORS: dict[str, str] = {}
DROPOUT_FIELDS = {
    "dropout": ("hidden_dropout_prob",),
    "attention_dropout": ("attention_probs_dropout_prob",),
    "classifier_dropout": ("classifier_dropout",),
}
NAMES = BlockNames(
    query="encoder.layer.{layer}.attention.self.query",
    key="encoder.layer.{layer}.attention.self.key",
    value="encoder.layer.{layer}.attention.self.value",
    out="encoder.layer.{layer}.attention.output.dense",
    attention_norm="encoder.layer.{layer}.attention.output.LayerNorm",
    up="encoder.layer.{layer}.intermediate.dense",
    down="encoder.layer.{layer}.output.dense",
    output_norm="encoder.layer.{layer}.output.LayerNorm",
)


@dataclass(frozen=True)
class Dims:
    """The fields of `config.json` that shape the model, with transformers' names and defaults."""

    vocab_size: int = 50265
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    classifier_dropout: float | None = None
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    pad_token_id: int = 1

    @property
    def encoder(self) -> EncoderDims:
        return EncoderDims(
            vocab=self.vocab_size,
            positions=self.max_position_embeddings,
            types=self.type_vocab_size,
            # As in fairseq, positions count on from the padding's, whose row is never trained.
            first_position=self.pad_token_id + 1,
            layers=self.num_hidden_layers,
            width=self.hidden_size,
            heads=self.num_attention_heads,
            mlp=self.intermediate_size,
            activation=self.hidden_act,
            eps=self.layer_norm_eps,
            dropout=self.hidden_dropout_prob,
            attention_dropout=self.attention_probs_dropout_prob,
            std=self.initializer_range,
        )

    @property
    def max_length(self) -> int:
        return self.max_position_embeddings - self.encoder.first_position

    @property
    def heads(self) -> int:
        return self.num_attention_heads

    @property
    def head_width(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def head_dropout(self) -> float:
        rate = self.classifier_dropout
        return self.hidden_dropout_prob if rate is None else rate


class ClassifyHead(nnx.Module):
    """First token -> dense -> tanh -> logits, with dropout before each product."""

    def __init__(self, dims: Dims, num_labels: int, *, rngs: nnx.Rngs):
        self.rate = dims.head_dropout
        width, std = dims.hidden_size, dims.initializer_range
        self.dense = Linear(
            width, width, axes=("embed", "heads"), hf="classifier.dense", std=std, rngs=rngs
        )
        self.out = Linear(
            width, num_labels, axes=("embed", None), hf="classifier.out_proj", std=std, rngs=rngs
        )

    def __call__(self, x_BMD: jax.Array, *, key: jax.Array | None) -> jax.Array:
        dense_key, out_key = split(key, 2)
        x_BMD = jnp.tanh(self.dense(dropout(x_BMD, self.rate, dense_key)))
        return self.out(dropout(x_BMD, self.rate, out_key).astype(jnp.float32))


class Model(PostNormEncoder):
    """RoBERTa with the head that `output` names (None: the bare encoder, without a pooler)."""

    OUTPUTS = ("classify",)

    def __init__(
        self,
        dims: Dims,
        *,
        output: str | None = None,
        num_labels: int = 0,
        compute: Compute = Compute(),
        rngs: nnx.Rngs,
    ):
        super().__init__(dims.encoder, NAMES, compute, rngs=rngs)
        self.dims = dims
        if output == "classify":
            self.heads = nnx.Dict({"classify": ClassifyHead(dims, num_labels, rngs=rngs)})

    def classify(
        self,
        hidden_BLD: jax.Array,
        tokens: Tokens,
        *,
        examples: int = 1,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Logits [B, M, C] of the first token, in float32."""
        first_BMD = first_token(hidden_BLD, tokens.segments_BL, examples)
        return self.heads["classify"](first_BMD, key=key)
