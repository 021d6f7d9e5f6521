"""Texts, or pairs of them, -> token ids, cut as transformers cuts them.

tokenizers, asked for a pair that is cut, makes an encoding of every part of the first text with
every part of the second, quadratic in their lengths; therefore the texts are put together here.
"""

import json
from collections.abc import Sequence
from itertools import repeat
from typing import Any

from jaxft.errors import UserError

BESIDE = ("truncation_side", "split_special_tokens", "model_input_names")
"""What decides a fast tokenizer's ids and is kept beside its backend."""


def encode(sides: Sequence[Sequence[str]], tokenizer: Any, max_length: int) -> dict[str, list]:
    """`input_ids`, `full_length` (tokens before the row was cut) and, where the tokenizer gives
    them, `token_type_ids`. `sides`: all rows' texts, or of pairs all first and all second texts.

    Raises: UserError where `max_length` leaves no room for a text.
    """
    frame = tokenizer(*("a" for _ in sides))
    kinds = frame.get("token_type_ids", repeat(0))
    slots = list(zip(frame.sequence_ids(0), frame["input_ids"], kinds, strict=False))
    layout: list[tuple] = []  # special tokens, whose side is None, and a place for each text
    for slot in slots:
        if slot[0] is None or slot[0] not in (side for side, *_ in layout):
            layout.append(slot)
    special = sum(side is None for side, *_ in layout)
    assert len(layout) == special + len(sides), "every text has its place"
    room = max_length - special
    if room < len(sides):
        raise UserError(
            f"data.max_length={max_length} leaves no room for text: {special} tokens are special."
        )
    bare = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
    ids = [tokenizer(list(side), **bare)["input_ids"] for side in sides]
    left = tokenizer.truncation_side == "left"
    out: dict[str, list] = {"input_ids": [], "token_type_ids": [], "full_length": []}
    for row in zip(*ids, strict=True):
        lengths = [len(side) for side in row]
        kept = _kept(lengths, room)
        fits = [
            side[length - n :] if left else side[:n]
            for side, length, n in zip(row, lengths, kept, strict=True)
        ]
        parts = [([token] if at is None else fits[at], kind) for at, token, kind in layout]
        out["input_ids"].append([token for part, _ in parts for token in part])
        out["token_type_ids"].append([kind for part, kind in parts for _ in part])
        out["full_length"].append(special + sum(lengths))
    return {name: out[name] for name in out if name == "full_length" or name in frame}


def with_padding(tokenizer: Any) -> Any:
    """The tokenizer with a padding token, EOS where it has none; but never the one that it puts
    after a text, which a reader that looks for the last token that is no padding would overlook.

    Raises: UserError where it has no other special token.
    """
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    last = tokenizer("a")["input_ids"][-1:]
    if tokenizer.pad_token is None or last == [tokenizer.pad_token_id]:
        known = sorted(tokenizer.added_tokens_decoder.items())
        free = [token.content for number, token in known if token.special and number not in last]
        if not free:
            has = f"pads with {tokenizer.pad_token!r}, which it puts after each text too"
            if tokenizer.pad_token is None:
                has = "has no token to pad with, nor an EOS token to take for it"
            raise UserError(
                f"The tokenizer {has}, and has no other special token. Add one by model.new_tokens="
                "{'<pad>': None}."
            )
        tokenizer.pad_token = free[0]
    return tokenizer


def _kept(lengths: list[int], room: int) -> list[int]:
    """How many tokens of each text fit: the longer one of two is cut first.

    Source: `longest_first` of tokenizers' truncation.rs.
    """
    if sum(lengths) <= room:
        return lengths
    if len(lengths) == 1:
        return [room]
    less = min(*lengths, room // 2)
    return [less, room - less] if lengths[0] <= lengths[1] else [room - less, less]


def tokenizer_content(tokenizer: Any) -> dict[str, Any]:
    """What a fast tokenizer does to texts and chats, as JSON; the options that its last call left
    in it are no part of that.
    """
    left_behind = {"truncation": None, "padding": None}
    named = {
        "special_tokens": tokenizer.special_tokens_map,
        "chat_template": tokenizer.chat_template,
        **{name: getattr(tokenizer, name) for name in BESIDE},
    }
    return json.loads(tokenizer.backend_tokenizer.to_str()) | left_behind | named
