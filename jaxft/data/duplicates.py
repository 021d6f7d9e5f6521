"""Equal and nearly equal texts, found by MinHash: the same answer on every machine, in seconds.

A signature holds, for each of N hash functions, the smallest hash among a text's character 5-grams;
two texts agree in a place with the probability that is the Jaccard similarity of their 5-gram sets.
Texts that agree in all places of one band are candidates; the best one is compared exactly.

Source: Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, chapter 3.
"""

import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

NEAR = 0.8  # similarity that counts: a typo or a changed ending, seldom a paraphrase
SHINGLE = 5  # characters
BANDS, PLACES = 8, 4  # finds 98 % of the pairs at similarity 0.8, more above
CANDIDATES = 16  # per row and band; keeps texts cut from one template affordable
EXAMPLES = 3
CHUNK = 1 << 22  # characters hashed at once, which bounds memory at some 200 MB

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def normalised(text: str) -> str:
    """The text as compared for equality: NFKC, case folded, blanks as single spaces."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return " ".join(text.casefold().split())


def signatures(texts: Sequence[str]) -> np.ndarray:
    """uint32 [texts, BANDS * PLACES]"""
    found = [_signatures(chunk) for chunk in _chunks(texts)]
    return np.concatenate([np.zeros((0, BANDS * PLACES), np.uint32), *found])


def _chunks(texts: Sequence[str]) -> Iterator[list[str]]:
    chunk: list[str] = []
    size = 0
    for text in texts:
        chunk.append(text.ljust(SHINGLE))
        size += len(chunk[-1])
        if size > CHUNK:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _signatures(texts: list[str]) -> np.ndarray:
    codes = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32)
    ends = np.cumsum([len(text) for text in texts])
    starts = np.concatenate([[0], ends[:-1]])
    shingles = np.zeros(len(codes) - SHINGLE + 1, np.uint64)
    for i in range(SHINGLE):
        shingles = shingles * _MULTIPLIER + codes[i : i + len(shingles)]
    shingles = _mix(shingles)
    across = (ends[:-1, None] - np.arange(1, SHINGLE)).ravel()  # begin in one text, end in the next
    found = np.empty((len(texts), BANDS * PLACES), np.uint32)
    for place, odd in enumerate(_mix(np.arange(1, BANDS * PLACES + 1, dtype=np.uint64)) | 1):
        hashed = (shingles * odd >> np.uint64(32)).astype(np.uint32)
        hashed[across] = np.iinfo(np.uint32).max
        found[:, place] = np.minimum.reduceat(hashed, starts)
    return found


def _mix(values: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser. Source: Steele, Lea and Flood 2014, with Stafford's constants."""
    values = values * _MULTIPLIER
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def overlap(
    texts: Sequence[str],
    known: Sequence[str],
    texts_signatures: np.ndarray,
    known_signatures: np.ndarray,
) -> dict[str, Any]:
    """How many of the (normalised) ``texts`` are, or nearly are, among the ``known``.

    ``exact`` and ``near`` count rows, each row once, ``near`` some too few (see CANDIDATES);
    ``examples`` are up to 3 of each kind.
    """
    place = {text: row for row, text in reversed(list(enumerate(known)))}
    rest = [row for row, text in enumerate(texts) if text not in place]
    examples = [
        {"kind": "exact", "text": text, "known": text}
        for text in dict.fromkeys(text for text in texts if text in place)
    ][:EXAMPLES]
    pool = np.fromiter(place.values(), int, len(place))
    partners = _candidates(texts_signatures[rest], known_signatures[pool])
    near = [
        {"kind": "near", "text": texts[row], "known": known[pool[partner]]}
        for row, partner in zip(rest, partners, strict=True)
        if partner >= 0 and similarity(texts[row], known[pool[partner]]) >= NEAR
    ]
    return {
        "exact": len(texts) - len(rest),
        "near": len(near),
        "examples": examples + near[:EXAMPLES],
    }


def _candidates(asked: np.ndarray, pool: np.ndarray) -> np.ndarray:
    """int [asked]: the pool's row that shares a band and agrees in most places, or -1."""
    best = np.full(len(asked), -1)
    for band in range(BANDS):
        places = slice(band * PLACES, (band + 1) * PLACES)
        pool_keys, asked_keys = _band_keys(pool[:, places]), _band_keys(asked[:, places])
        order = np.argsort(pool_keys, kind="stable")
        first = np.searchsorted(pool_keys[order], asked_keys, "left")
        last = np.searchsorted(pool_keys[order], asked_keys, "right")
        counts = np.minimum(last - first, CANDIDATES)
        rows = np.repeat(np.arange(len(asked)), counts)
        nth = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        partners = order[np.repeat(first, counts) + nth]
        agreement = np.count_nonzero(asked[rows] == pool[partners], axis=1)
        np.maximum.at(best, rows, agreement * len(pool) + partners)
    return np.where(best < 0, -1, best % max(len(pool), 1))


def _band_keys(places: np.ndarray) -> np.ndarray:
    keys = np.zeros(len(places), np.uint64)
    for column in places.T:
        keys = _mix(keys ^ column)
    return keys


def similarity(a: str, b: str) -> float:
    """Jaccard similarity of the sets of character 5-grams."""
    a_set, b_set = (
        {text[i : i + SHINGLE] for i in range(max(len(text) - SHINGLE, 0) + 1)}
        for text in (a.ljust(SHINGLE), b.ljust(SHINGLE))
    )
    return len(a_set & b_set) / len(a_set | b_set)
