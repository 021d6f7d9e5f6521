"""Tokens that are added to a tokenizer, and the rows they get in the embedding and the head.

Source: Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language Models": a row drawn
at random can take all probability from the tokens that were there, the mean of their rows cannot.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxft.errors import UserError

_ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class NewRows:
    """The rows that a model's tables over the vocabulary lack."""

    stored: int
    """Rows that the checkpoint's tables have."""
    known: int
    """Those of them, from 0 on, that belong to a token; the rest is padding."""
    sources: Mapping[int, tuple[int, ...]]
    """Id of each added token -> ids whose mean its row is; none: of all that are known."""

    def complete(
        self, table: np.ndarray, first: int, stored: Callable[[slice], np.ndarray]
    ) -> None:
        """Fills `table`, whose rows are those from `first` on, from the `stored` rows."""
        last = min(first + len(table), self.stored)
        if first < last:
            table[: last - first] = stored(slice(first, last))
        mean = None
        for row, ids in self.sources.items():
            if not first <= row < first + len(table):
                continue
            if ids:
                rows = [stored(slice(i, i + 1))[0] for i in ids]
                table[row - first] = np.mean(rows, axis=0, dtype=np.float64)
            else:
                mean = self._mean(stored) if mean is None else mean
                table[row - first] = mean

    def _mean(self, stored: Callable[[slice], np.ndarray]) -> np.ndarray:
        """The mean of the known rows, read a few at a time."""
        edges = range(0, self.known, _ROWS_AT_ONCE)
        spans = (slice(i, min(i + _ROWS_AT_ONCE, self.known)) for i in edges)
        sums = [stored(span).sum(axis=0, dtype=np.float64) for span in spans]
        return np.sum(sums, axis=0) / self.known


def add_tokens(tokenizer: Any, tokens: Mapping[str, str | None], rows: int) -> NewRows:
    """Adds `tokens` to the tokenizer, as special ones, and says what rows they get.

    `tokens` gives each the text whose tokens' mean is its row; None: the mean of all. `rows` are
    those of the checkpoint: spare ones, without a token so far, are used before any is added. A
    token that the tokenizer has, but the checkpoint no row for, gets one too.

    Raises:
        UserError: a token that is empty or has a row, or a text without tokens that have one.
    """
    vocabulary = tokenizer.get_vocab()
    known = min(max(vocabulary.values()) + 1, rows)
    sources: dict[str, tuple[int, ...]] = {}
    for token, text in tokens.items():
        if not token:
            raise UserError("model.new_tokens: a token is empty.")
        if vocabulary.get(token, rows) < known:
            raise UserError(
                f"model.new_tokens: the tokenizer has {token!r} already, as token "
                f"{vocabulary[token]}; leave it out."
            )
        ids = [] if text is None else tokenizer(text, add_special_tokens=False)["input_ids"]
        if text is not None and (not ids or max(ids) >= known):
            raise UserError(
                f"model.new_tokens: {token!r} is to begin as the mean of {text!r}, which gives no "
                "tokens with rows. Give it another text, or None for the mean of all rows."
            )
        sources[token] = tuple(ids)
    tokenizer.add_tokens(list(tokens), special_tokens=True)
    return NewRows(
        rows, known, {tokenizer.convert_tokens_to_ids(token): ids for token, ids in sources.items()}
    )
