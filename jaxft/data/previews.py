"""Examples as the model will see them, learnt tokens marked: on a terminal and in TensorBoard."""

from collections.abc import Sequence
from html import escape

from rich.console import Console
from rich.text import Text

LEARNT = "green"
"""The style of learnt tokens."""


def show(examples: Sequence[Text]) -> None:
    """On stderr."""
    console = Console(stderr=True)
    for number, example in enumerate(examples, 1):
        console.rule(f"example {number} of {len(examples)}, learnt tokens in {LEARNT}", style="dim")
        console.print(example, soft_wrap=True)
    if examples:
        console.rule(style="dim")


def markdown(example: Text) -> str:
    """For TensorBoard, which knows no colours: learnt tokens are bold."""
    parts, end = [], 0
    for span in sorted(example.spans):
        if span.style == LEARNT:
            parts += [escape(example.plain[end : span.start])]
            parts += [f"<strong>{escape(example.plain[span.start : span.end])}</strong>"]
            end = span.end
    return f"<pre>{''.join(parts)}{escape(example.plain[end:])}</pre>"
