"""BERT. Source: Devlin et al. 2018; transformers 5.23 `models/bert`."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from jaxft.nn.encoder import BlockNames, EncoderDims, PostNormEncoder
from jaxft.nn.fields import Harmless
from jaxft.nn.layers import Compute, Linear, dropout
from jaxft.nn.tokens import Tokens, first_token

PREFIX = "bert"
ARCHITECTURES = {None: "BertModel", "classify": "BertForSequenceClassification"}
_OTHER_POOLER = Harmless("sizes for another pooler_type")
HARMLESS_FIELDS = {
    "position_embedding_type": Harmless("positions are absolute", only=("absolute",)),
    "directionality": Harmless("the original release's word for it", only=("bidi",)),
    "pooler_type": Harmless("the first token is pooled", only=("first_token_transform",)),
    "pooler_fc_size": _OTHER_POOLER,
    "pooler_num_attention_heads": _OTHER_POOLER,
    "pooler_num_fc_layers": _OTHER_POOLER,
    "pooler_size_per_head": _OTHER_POOLER,
}
UNUSED_TENSORS = {
    r"cls\..*": "pretraining heads (masked words, next sentence)",
    r"embeddings\.position_ids": "a constant that old versions saved",
}
NEW_TENSORS = {r"pooler\..*": "checkpoints trained on masked words alone have no pooler"}
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

    vocab_size: int = 30522
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

    @property
    def encoder(self) -> EncoderDims:
        return EncoderDims(
            vocab=self.vocab_size,
            positions=self.max_position_embeddings,
            types=self.type_vocab_size,
            first_position=0,
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
        return self.max_position_embeddings

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


class Model(PostNormEncoder):
    """BERT with the head that `output` names (None: the bare encoder and its pooler)."""

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
        width, std = dims.hidden_size, dims.initializer_range
        self.pooler = Linear(
            width, width, axes=("embed", "heads"), hf="pooler.dense", std=std, rngs=rngs
        )
        if output == "classify":
            classify = Linear(
                width, num_labels, axes=("embed", None), hf="classifier", std=std, rngs=rngs
            )
            self.heads = nnx.Dict({"classify": classify})

    def classify(
        self,
        hidden_BLD: jax.Array,
        tokens: Tokens,
        *,
        examples: int = 1,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Logits [B, M, C] of the pooled first token, in float32."""
        first_BMD = first_token(hidden_BLD, tokens.segments_BL, examples)
        pooled_BMD = dropout(jnp.tanh(self.pooler(first_BMD)), self.dims.head_dropout, key)
        return self.heads["classify"](pooled_BMD.astype(jnp.float32))
