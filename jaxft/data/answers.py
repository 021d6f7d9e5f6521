"""Answers as people check them: what an example says is right, and whether an answer says the same.

Source: Cobbe et al. 2021, Training Verifiers to Solve Math Word Problems (GSM8K), whose answers end
with `#### 42`.
"""

import re
from decimal import Decimal
from typing import Any

FINAL = "####"
_NUMBER = re.compile(r"(?:(?<!\d)-)?\$?(?:\d{1,3}(?:,\d{3})+(?![\d,])|\d+)(?:\.\d+)?", re.ASCII)


def reference(example: dict[str, Any]) -> str | None:
    """The answer that an example gives; of a chat the one it ends with."""
    if "messages" in example:
        last = example["messages"][-1]
        return last["content"] if last["role"] == "assistant" else None
    return example.get("completion", example.get("output"))


def number(text: str) -> Decimal | None:
    """The number after the first `####`, or the last one of a text that has none; 1,000.0 is 1000
    and $5 is 5.
    """
    _, mark, after = text.partition(FINAL)
    found = _NUMBER.findall(after if mark else text)
    if not found:
        return None
    return Decimal(found[0 if mark else -1].replace(",", "").replace("$", ""))


def same(said: str, right: str, kind: str) -> bool:
    """Whether two answers have the same final "number", or are the same "text"."""
    if kind == "number":
        return number(right) is not None and number(said) == number(right)
    return said.strip() == right.strip()
