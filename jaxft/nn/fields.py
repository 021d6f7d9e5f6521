"""`config.json` -> a family's `Dims`: each field is understood, harmless or an error."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from jaxft.errors import UserError

D = TypeVar("D")
_JSON = {
    int: "a whole number",
    float: "a number",
    str: "a string",
    bool: "true or false",
    list: "a list",
    dict: "an object",
    type(None): "null",
}


@dataclass(frozen=True)
class Harmless:
    """Why a field of `config.json` need not be understood, and the values for which that holds."""

    why: str
    only: tuple[Any, ...] | None = None


_GENERATION = Harmless("a setting of text generation or of the tokenizer")
_RECORD = Harmless("a record, not a setting")
_OUTPUTS = Harmless("what a call of transformers or sentence-transformers returns")
# transformers 2 to 4 wrote these beside the architecture, for encoders too.
_OLD_GENERATION = (
    *("bad_words_ids", "begin_suppress_tokens", "decoder_start_token_id", "diversity_penalty"),
    *("do_sample", "early_stopping", "encoder_no_repeat_ngram_size", "eos_token_ids"),
    *("exponential_decay_length_penalty", "forced_bos_token_id", "forced_eos_token_id"),
    *("length_penalty", "max_length", "min_length", "no_repeat_ngram_size", "num_beam_groups"),
    *("num_beams", "num_return_sequences", "output_past", "output_scores", "prefix"),
    *("remove_invalid_values", "repetition_penalty", "return_dict_in_generate", "suppress_tokens"),
    *("task_specific_params", "temperature", "tokenizer_class", "top_k", "top_p", "typical_p"),
)

# Other tools leave these. Not auto_map: it names code of the checkpoint's own, and with it another
# model may go by a known model_type (jinaai/jina-embeddings-v2-base-en is a "bert" with ALiBi).
_RECORDS = ("transformers.js_config", "unsloth_fixed", "unsloth_version")

COMMON = {
    **dict.fromkeys(_OLD_GENERATION, _GENERATION),
    **dict.fromkeys(_RECORDS, _RECORD),
    "_name_or_path": _RECORD,
    "architectures": _RECORD,
    "model_type": _RECORD,
    "transformers_version": _RECORD,
    "dtype": Harmless("the file's tensors say it themselves"),
    "torch_dtype": Harmless("the file's tensors say it themselves"),
    "id2label": Harmless("read with the labels"),
    "label2id": Harmless("read with the labels"),
    "num_labels": Harmless("read with the labels"),
    "_num_labels": Harmless("read with the labels"),
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
    "tie_word_embeddings": Harmless("encoders build no language-model head"),
    "tie_encoder_decoder": Harmless("there is no decoder", only=(False,)),
    "is_decoder": Harmless("the family decides what a token sees", only=(False,)),
    "is_encoder_decoder": Harmless("there is one stack", only=(False,)),
    "add_cross_attention": Harmless("there is no second stack", only=(False,)),
    "cross_attention_hidden_size": Harmless("there is no second stack", only=(None,)),
    "chunk_size_feed_forward": Harmless("a memory setting"),
    "gradient_checkpointing": Harmless("a memory setting; ours is model.activation_checkpointing"),
    "torchscript": _OUTPUTS,
    "sbert_ce_default_activation_function": _OUTPUTS,
    "sentence_transformers": _OUTPUTS,
    "_attn_implementation_autoset": Harmless("the kernel is model.attention"),
    "use_bfloat16": Harmless("the precision is model.dtype"),
    "xla_device": _RECORD,
    "pruned_heads": Harmless("nothing was pruned", only=({}, None)),
}
"""Fields that transformers, and tools around it, write for every family."""


def read_dims(cls: type[D], config: Mapping[str, Any], harmless: Mapping[str, Harmless]) -> D:
    """`cls` (a dataclass with transformers' field names and defaults) from a `config.json`.

    Raises:
        UserError: fields that are neither one of `cls` nor harmless, or of a wrong type, by name.
    """
    kinds = {name: _kinds(hint) for name, hint in get_type_hints(cls).items()}
    rules = COMMON | dict(harmless)
    known = {key: value for key, value in config.items() if key in kinds}
    unknown = [
        f"  {key} = {value!r}{_only(rules.get(key))}"
        for key, value in config.items()
        if key not in kinds and not _is_harmless(value, rules.get(key))
    ]
    if unknown:
        raise UserError(
            f"config.json asks for what {config.get('model_type', 'this family')} cannot do here:\n"
            + "\n".join(unknown)
            + "\nIgnoring it could change the model. If it does not, delete it from config.json."
        )
    wrong = [
        f"  {key} = {value!r}: must be {' or '.join(_JSON[kind] for kind in kinds[key])}"
        for key, value in known.items()
        if not _is_a(value, kinds[key])
    ]
    if wrong:
        raise UserError("config.json has values of a wrong type:\n" + "\n".join(wrong))
    return cls(**known)


def _kinds(hint: Any) -> tuple[type, ...]:
    """The plain types of an annotation such as `list[str] | None`."""
    parts = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    return tuple(get_origin(part) or part for part in parts)


def _is_harmless(value: Any, rule: Harmless | None) -> bool:
    return rule is not None and (rule.only is None or value in rule.only)


def _is_a(value: Any, kinds: tuple[type, ...]) -> bool:
    """A whole number is a float too; true and false are no numbers."""
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, (*kinds, int) if float in kinds else kinds)


def _only(rule: Harmless | None) -> str:
    return f" (understood is {' or '.join(map(repr, rule.only))})" if rule and rule.only else ""
