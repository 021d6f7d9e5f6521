"""XLM-RoBERTa: RoBERTa under another name.

Source: Conneau et al. 2019; transformers 5.23 `models/xlm_roberta`.
"""

from dataclasses import dataclass

from jaxft.models import roberta
from jaxft.models.roberta import (
    DROPOUT_FIELDS,
    HARMLESS_FIELDS,
    NEW_TENSORS,
    PREFIX,
    UNUSED_TENSORS,
    Model,
)

__all__ = [
    "ARCHITECTURES",
    "DROPOUT_FIELDS",
    "HARMLESS_FIELDS",
    "NEW_TENSORS",
    "PREFIX",
    "UNUSED_TENSORS",
    "Dims",
    "Model",
]
ARCHITECTURES = {None: "XLMRobertaModel", "classify": "XLMRobertaForSequenceClassification"}


@dataclass(frozen=True)
class Dims(roberta.Dims):
    """RoBERTa's, with another default."""

    vocab_size: int = 30522
