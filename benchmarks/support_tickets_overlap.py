"""Shows that no message of the bundled set was made from another by swapping words.

    python benchmarks/support_tickets_overlap.py [--top=10]

Prints words per split and class, exact duplicates, and the pairs of messages that share the longest
run of words. Words are compared without case and punctuation.
"""

import argparse
import csv
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).resolve().parents[1] / "configs" / "data" / "support_tickets"
SPLITS = ("train", "validation", "test")


class Message(NamedTuple):
    split: str
    row: int
    label: str
    words: tuple[str, ...]


def read(folder: Path) -> list[Message]:
    messages = []
    for split in SPLITS:
        with open(folder / f"{split}.csv", newline="", encoding="utf-8") as file:
            for row, line in enumerate(csv.DictReader(file), 1):
                words = tuple(re.findall(r"\w+(?:['’]\w+)*", line["text"].casefold()))
                messages.append(Message(split, row, line["label"], words))
    return messages


def shared_runs(messages: Sequence[Message]) -> dict[tuple[int, int], tuple[str, ...]]:
    """Pair of message numbers -> the longest run of words that both hold, of two words or more.

    Runs of n words are looked up for n = 2, 3, ... among the pairs that share one of n - 1.
    """
    longest: dict[tuple[int, int], tuple[str, ...]] = {}
    alive = set(range(len(messages)))
    n = 2
    while alive:
        holders: dict[tuple[str, ...], set[int]] = defaultdict(set)
        for i in alive:
            words = messages[i].words
            for start in range(len(words) - n + 1):
                holders[words[start : start + n]].add(i)
        alive = set()
        for run, found in holders.items():
            ordered = sorted(found)
            for at, i in enumerate(ordered):
                longest |= {(i, j): run for j in ordered[at + 1 :]}
            alive |= found if len(found) > 1 else set()
        n += 1
    return longest


def table(header: str, rows: Iterable[Sequence[object]]) -> None:
    print(f"\n{header}\n" + "|---" * (header.count("|") - 1) + "|")
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |")


def counts(messages: Sequence[Message]) -> Iterable[tuple[object, ...]]:
    """Label, messages per split, and shortest, median and longest in words."""
    for label in [*sorted({m.label for m in messages}), "all"]:
        of = [m for m in messages if label in (m.label, "all")]
        per_split = Counter(m.split for m in of)
        sizes = [len(m.words) for m in of]
        shape = f"{min(sizes)} / {statistics.median(sizes):g} / {max(sizes)}"
        yield label, *(per_split[split] for split in SPLITS), len(of), shape, sum(sizes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--top", type=int, default=10)
    given = parser.parse_args()
    messages = read(FOLDER)
    header = "| label | train | validation | test | all | words: min / median / max | words |"
    table(header, counts(messages))
    same = Counter(m.words for m in messages)
    print(f"\nExact duplicates: {sum(count - 1 for count in same.values())}")

    runs = shared_runs(messages)
    top = sorted(runs.items(), key=lambda item: (-len(item[1]), item[0]))[: given.top]
    rows = []
    for pair, run in top:
        parts = [messages[i] for i in pair]
        share = len(run) / min(len(m.words) for m in parts)
        places = [f"{m.split} {m.row} ({m.label}, {len(m.words)} words)" for m in parts]
        rows.append((len(run), f"{share:.0%}", " ".join(run), *places))
    table("| words | of the shorter | shared run | in | and in |", rows)
    spread = Counter(map(len, runs.values()))
    found = ", ".join(f"{n} words: {spread[n]}" for n in sorted(spread, reverse=True))
    print(f"\nPairs by their longest shared run: {found}")


if __name__ == "__main__":
    main()
