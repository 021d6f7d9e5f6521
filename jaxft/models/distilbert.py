"""DistilBERT. Source: Sanh et al. 2019; transformers 5.23 `models/distilbert`."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from jaxft.nn.encoder import BlockNames, EncoderDims, PostNormEncoder
from jaxft.nn.fields import Harmless
from jaxft.nn.layers import Compute, Linear, dropout
from jaxft.nn.tokens import Tokens, first_token

PREFIX = "distilbert"
ARCHITECTURES = {None: "DistilBertModel", "classify": "DistilBertForSequenceClassification"}
HARMLESS_FIELDS = {
    "sinusoidal_pos_embds": Harmless("the position table is learned", only=(False,)),
    "qa_dropout": Harmless("belongs to the question-answering head"),
    "tie_weights_": Harmless("no language-model head is built"),
}
UNUSED_TENSORS = {
    r"vocab_(transform|layer_norm|projector)\..*": "the pretraining head (masked words)",
    r"embeddings\.position_ids": "a constant that old versions saved",
}
NEW_TENSORS: dict[str, str] = {}
DROPOUT_FIELDS = {
    "dropout": ("dropout",),
    "attention_dropout": ("attention_dropout",),
    "classifier_dropout": ("seq_classif_dropout",),
}
NAMES = BlockNames(
    query="transformer.layer.{layer}.attention.q_lin",
    key="transformer.layer.{layer}.attention.k_lin",
    value="transformer.layer.{layer}.attention.v_lin",
    out="transformer.layer.{layer}.attention.out_lin",
    attention_norm="transformer.layer.{layer}.sa_layer_norm",
    up="transformer.layer.{layer}.ffn.lin1",
    down="transformer.layer.{layer}.ffn.lin2",
    output_norm="transformer.layer.{layer}.output_layer_norm",
)


@dataclass(frozen=True)
class Dims:
    """The fields of `config.json` that shape the model, with transformers' names and defaults."""

    vocab_size: int = 30522
    dim: int = 768
    n_layers: int = 6
    n_heads: int = 12
    hidden_dim: int = 3072
    activation: str = "gelu"
    dropout: float = 0.1
    attention_dropout: float = 0.1
    seq_classif_dropout: float = 0.2
    max_position_embeddings: int = 512
    initializer_range: float = 0.02

    @property
    def encoder(self) -> EncoderDims:
        return EncoderDims(
            vocab=self.vocab_size,
            positions=self.max_position_embeddings,
            types=0,
            first_position=0,
            layers=self.n_layers,
            width=self.dim,
            heads=self.n_heads,
            mlp=self.hidden_dim,
            activation=self.activation,
            eps=1e-12,
            dropout=self.dropout,
            attention_dropout=self.attention_dropout,
            std=self.initializer_range,
        )

    @property
    def max_length(self) -> int:
        return self.max_position_embeddings

    @property
    def heads(self) -> int:
        return self.n_heads

    @property
    def head_width(self) -> int:
        return self.dim // self.n_heads


class ClassifyHead(nnx.Module):
    """First token -> dense -> relu -> dropout -> logits."""

    def __init__(self, dims: Dims, num_labels: int, *, rngs: nnx.Rngs):
        self.rate = dims.seq_classif_dropout
        width, std = dims.dim, dims.initializer_range
        self.dense = Linear(
            width, width, axes=("embed", "heads"), hf="pre_classifier", std=std, rngs=rngs
        )
        self.out = Linear(
            width, num_labels, axes=("embed", None), hf="classifier", std=std, rngs=rngs
        )

    def __call__(self, x_BMD: jax.Array, *, key: jax.Array | None) -> jax.Array:
        x_BMD = dropout(jax.nn.relu(self.dense(x_BMD)), self.rate, key)
        return self.out(x_BMD.astype(jnp.float32))


class Model(PostNormEncoder):
    """DistilBERT with the head that `output` names (None: the bare encoder)."""

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
