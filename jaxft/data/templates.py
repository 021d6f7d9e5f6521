"""Chat templates: the ones that can be named, and the token with which one ends an answer."""

import copy
import re
from typing import Any

from jaxft.errors import UserError

TEMPLATES = {
    "chatml": (
        "{% if tools %}<|im_start|>system\nTools: {{ tools | tojson }}<|im_end|>\n{% endif %}"
        "{% for turn in messages %}<|im_start|>{{ turn.role + '\n' + turn.content }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "llama3": (
        "{% set start, end = '<|start_header_id|>', '<|end_header_id|>\n\n' %}"
        "{% if tools %}{{ start + 'system' + end }}Tools: {{ tools | tojson }}<|eot_id|>{% endif %}"
        "{% for turn in messages %}{% set role = 'ipython' if turn.role == 'tool' else turn.role %}"
        "{{ start + role + end + turn.content | trim }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}{{ start + 'assistant' + end }}{% endif %}"
    ),
    "plain": (
        "{% if tools %}{{ 'Tools: ' + tools | tojson + '\n\n' }}{% endif %}"
        "{% for turn in messages %}{{ turn.role | capitalize + ': ' + turn.content }}"
        "{% if turn.role == 'assistant' %}{{ eos_token }}{% endif %}"
        "{% if not loop.last %}{{ '\n\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '\n\nAssistant:' }}{% endif %}"
    ),
}
"""Jinja; `chatml` is Qwen's form, `llama3` is Llama 3's, and `plain` needs no tokens of its own."""


def with_template(tokenizer: Any, name: str | None) -> Any:
    """The tokenizer with one of TEMPLATES, to train with and to export; itself if `name` is None.

    Raises: UserError for an unknown name, for a template whose tokens the tokenizer lacks, and
        for a tokenizer without a template where none is named.
    """
    if name is None and tokenizer.chat_template is None:
        raise UserError(
            "The model's tokenizer has no chat template, so that there is no form for messages. "
            f"Name one: task.chat_template is one of {', '.join(TEMPLATES)}; 'plain' works with "
            "any tokenizer."
        )
    if name is None:
        return tokenizer
    if name not in TEMPLATES:
        raise UserError(f"task.chat_template={name!r}: known are {', '.join(TEMPLATES)}.")
    needed = sorted(set(re.findall(r"<\|\w+\|>", TEMPLATES[name])))
    if lacking := [token for token in needed if token not in tokenizer.added_tokens_encoder]:
        raise UserError(
            f"task.chat_template={name!r} needs the tokens {' '.join(lacking)}, which the model's "
            "tokenizer does not have; model.new_tokens adds them. 'plain' works with any tokenizer."
        )
    by_itself = tokenizer.bos_token_id in before_text(tokenizer)
    changed = copy.copy(tokenizer)
    changed.chat_template = ("{{ bos_token }}" if by_itself else "") + TEMPLATES[name]
    return changed


def before_text(tokenizer: Any) -> list[int]:
    """What the tokenizer puts before a text by itself: BOS or [CLS], if anything."""
    one = tokenizer("a", return_special_tokens_mask=True)
    return one["input_ids"][: one["special_tokens_mask"].index(0)]


def ends(tokenizer: Any) -> tuple[str, ...]:
    """Tokens that may end an answer: EOS and all that were added to the vocabulary."""
    eos = tokenizer.special_tokens_map.get("eos_token")
    return (*([eos] if eos else []), *tokenizer.added_tokens_encoder)


def end_of_turn(tokenizer: Any) -> str | None:
    """The token that the tokenizer's chat template writes after an answer, if there is one."""
    if not tokenizer.chat_template:
        return None
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": mark(1)}]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False)
    except Exception:  # a template that wants more than these two turns; a template is a program
        return None
    after = text.partition(mark(1))[2].strip()
    return max((end for end in ends(tokenizer) if after.startswith(end)), key=len, default=None)


def mark(turn: int) -> str:
    """Content that no text has, of the private use area, to find again what a template renders."""
    return f"\ue0f0{turn}\ue0f1"
