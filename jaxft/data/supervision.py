"""Rendered texts -> token ids, and which of them are trained; one tokenisation, character offsets.

A text is tokenised once and whole, and a token is trained when it starts inside a trained span.
Spaces before a span belong to it, since most vocabularies make them part of its first token: after
the prompt "Answer: " GPT-2 has to write " yes", and at serving it is given the prompt without the
space (`prompt_ids`). A token that begins in the prompt otherwise is the prompt's.
Nothing is decided by id: where PAD is EOS too, the EOS of an answer is trained all the same.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from rich.text import Text

from jaxft.data.chat import Rendered, prompt
from jaxft.data.previews import LEARNT
from jaxft.data.templates import before_text, end_of_turn, ends
from jaxft.errors import UserError

UNSUPERVISED = "no supervised token"
CUT = "answer cut by data.max_length"
BLANKS = " \t"  # become part of the word after them; newlines do not


def encode(
    rendered: Sequence[Rendered], tokenizer: Any, max_length: int, *, cut: bool
) -> dict[str, list]:
    """Rows of at most `max_length` tokens; documents make several, the others one each.

    input_ids, trained: per row a list of ids and one of 0 and 1 (a target of the loss). The first
        token of a row is no target: nothing stands before it.
    full_length: tokens before the row was cut. A document is not cut but torn, and loses none.
    lost: how many targets were cut off.
    dropped: "", or why the row must not be trained: nothing in it is, or (unless `cut`, which
        keeps the answer's beginning) `max_length` cuts off something that is trained.
    row: which of `rendered` it is from.

    Raises:
        UserError: a tokenizer without offsets; two BOS tokens; an end token that the tokenizer
        does not know as one.
    """
    out: dict[str, list] = {
        name: [] for name in ("input_ids", "trained", "full_length", "lost", "dropped", "row")
    }
    final, known = ends(tokenizer), set(tokenizer.added_tokens_encoder.values())
    for row, (one, ids, offsets) in enumerate(_tokens(rendered, tokenizer)):
        trained = np.zeros(len(ids), bool)
        for start, stop in one.spans:
            trained |= _inside(one.text, offsets, start, stop)
            said = one.text[start:stop].rstrip()
            if said.endswith(final) and _last(ids, offsets, start + len(said)) not in known:
                raise UserError(
                    f"The tokenizer does not read the token that ends {said[-40:]!r} as one token, "
                    "so that the model would never learn to stop. Add it to the tokenizer's "
                    "special tokens (eos_token), and leave split_special_tokens off."
                )
        for start, stop in _windows(len(ids), max_length) if one.document else [(0, max_length)]:
            kept = trained[start:stop].copy()
            kept[:1] = 0
            lost = 0 if one.document else int(trained[stop:].sum())
            out["input_ids"].append(ids[start:stop])
            out["trained"].append(kept.astype(int).tolist())
            out["full_length"].append(len(kept) if one.document else len(ids))
            out["lost"].append(lost)
            reason = CUT if lost and not cut else "" if kept.any() else UNSUPERVISED
            out["dropped"].append(reason)
            out["row"].append(row)
    return out


def prompt_ids(
    examples: Sequence[dict[str, Any]], tokenizer: Any, template: str | None, where: Sequence[str]
) -> list[list[int]]:
    """The tokens to generate an answer from: those that stand before one in training, unless the
    prompt ends within a token.

    `template` and `where` (one per example) as for `chat.render`.

    Raises: UserError for an example without a prompt, and as `encode`.
    """
    asked = [
        prompt(example, tokenizer, template=template, where=at)
        for example, at in zip(examples, where, strict=True)
    ]
    without = [replace(one, text=one.text.rstrip(BLANKS)) for one in asked]
    return [ids for _, ids, _ in _tokens(without, tokenizer)]


def stop_ids(tokenizer: Any) -> tuple[int, ...]:
    """Tokens at which generation stops: EOS, and what ends a turn of the chat template."""
    names = (tokenizer.special_tokens_map.get("eos_token"), end_of_turn(tokenizer))
    return tuple(dict.fromkeys(tokenizer.convert_tokens_to_ids(name) for name in names if name))


def preview(input_ids: Sequence[int], trained: Sequence[int], tokenizer: Any) -> Text:
    """One row as a text, trained tokens green and the rest dim, ends of lines as ⏎."""
    shown, before = Text(), ""
    edges = [i for i in range(1, len(input_ids)) if trained[i] != trained[i - 1]]
    for start, stop in zip([0, *edges], [*edges, len(input_ids)], strict=True):
        # Decoded from the first token on: a part by itself can lose the blank it starts with.
        text = tokenizer.decode(list(input_ids[:stop]), clean_up_tokenization_spaces=False)
        part = text[len(before) :].replace("\n", "⏎\n")
        shown.append(part, style=LEARNT if trained[start] else "dim")
        before = text
    return shown


def _tokens(
    rendered: Sequence[Rendered], tokenizer: Any
) -> list[tuple[Rendered, list[int], np.ndarray]]:
    """Each text, its ids, and the characters they are from, int [tokens, 2]; (-1, 0) if added.

    RoBERTa's and Llama 3's leave out spaces, so that a token of spaces starts where it ends.
    """
    if not tokenizer.is_fast:
        raise UserError(
            f"{type(tokenizer).__name__} tells no character offsets; save it as tokenizer.json "
            "(AutoTokenizer.from_pretrained(...).save_pretrained(folder)) and give that folder."
        )
    if not rendered:
        return []
    added = before_text(tokenizer)
    bos = tokenizer.special_tokens_map.get("bos_token")
    encoded = tokenizer(
        [one.text for one in rendered],
        add_special_tokens=False,
        return_offsets_mapping=True,
        return_attention_mask=False,
        verbose=False,
    )
    found = []
    for one, ids, offsets in zip(
        rendered, encoded["input_ids"], encoded["offset_mapping"], strict=True
    ):
        before = added if one.special else []
        ids = [*before, *ids]
        if bos and ids[:2] == [tokenizer.bos_token_id] * 2:
            raise UserError(
                f"Two BOS tokens {bos} begin {one.text[:60]!r}: take {bos} out of the data or out "
                "of the chat template."
            )
        places = np.asarray([(-1, 0)] * len(before) + list(offsets), np.int64).reshape(-1, 2)
        found.append((one, ids, places))
    return found


def _inside(text: str, offsets: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Which tokens start in `text[start:stop]` or in the blanks before it, bool [tokens]."""
    return (offsets[:, 0] >= len(text[:start].rstrip(BLANKS))) & (offsets[:, 0] < stop)


def _last(ids: Sequence[int], offsets: np.ndarray, end: int) -> int | None:
    """The token that holds the character before `end`."""
    there = np.flatnonzero((offsets[:, 0] < end) & (offsets[:, 1] >= end))
    return ids[there[-1]] if len(there) else None


def _windows(length: int, size: int) -> list[tuple[int, int]]:
    """Start and end of windows of `size`; none is of one token, which could not be trained."""
    edges = [*range(0, length, size), length]
    if length > size > 2 and length % size == 1:
        edges[-2] -= 1
    return list(pairwise(edges))
