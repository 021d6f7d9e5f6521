"""Reading a checkpoint's `config.json` into a family's `Dims`: every field is understood, harmless, or an error."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from jaxft.errors import UserError

D = TypeVar("D")


@dataclass(frozen=True)
class Harmless:
    """Why a field of `config.json` need not be understood, and the values for which that holds."""

    why: str
    only: tuple[Any, ...] | None = None


_GENERATION = Harmless("a setting of text generation or of the tokenizer")
_RECORD = Harmless("a record, not a setting")
_OUTPUTS = Harmless("what a transformers call returns")

COMMON = {
    "_name_or_path": _RECORD,
    "architectures": _RECORD,
    "model_type": _RECORD,
    "transformers_version": _RECORD,
    "dtype": Harmless("the file's tensors say it themselves"),
    "torch_dtype": Harmless("the file's tensors say it themselves"),
    "id2label": Harmless("read with the labels"),
    "label2id": Harmless("read with the labels"),
    "num_labels": Harmless("read with the labels"),
    "problem_type": Harmless("the task decides"),
    "finetuning_task": _RECORD,
    "use_cache": _GENERATION,
    "bos_token_id": _GENERATION,
    "eos_token_id": _GENERATION,
    "sep_token_id": _GENERATION,
    "cls_token_id": _GENERATION,
    "pad_token_id": _GENERATION,
    "return_dict": _OUTPUTS,
    "output_hidden_states": _OUTPUTS,
    "output_attentions": _OUTPUTS,
    "tie_word_embeddings": Harmless("no language-model head is built"),
    "is_encoder_decoder": Harmless("this family is an encoder", only=(False,)),
    "chunk_size_feed_forward": Harmless("a memory setting"),
    "torchscript": _OUTPUTS,
    "pruned_heads": Harmless("nothing was pruned", only=({}, None)),
}
"""Fields that transformers writes for every family."""


def read_dims(cls: type[D], config: Mapping[str, Any], harmless: Mapping[str, Harmless]) -> D:
    """`cls` (a dataclass with transformers' field names and defaults) from a `config.json`.

    Raises:
        UserError: a field is neither one of `cls` nor harmless, by name.
    """
    known = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    allowed = COMMON | dict(harmless)
    unknown = [
        f"  {key} = {value!r}" + (f" (we know only {allowed[key].only})" if key in allowed else "")
        for key, value in config.items()
        if key not in known and not _is_harmless(value, allowed.get(key))
    ]
    if unknown:
        raise UserError(
            "config.json asks for something this model family does not do here:\n"
            + "\n".join(unknown)
            + "\nIgnoring it could change the model, so the import stops."
        )
    return cls(**{key: value for key, value in config.items() if key in known})


def _is_harmless(value: Any, rule: Harmless | None) -> bool:
    return rule is not None and (rule.only is None or value in rule.only)
