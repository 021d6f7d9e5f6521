"""Where a run speaks to people, since stdout is for results."""

import sys
from collections.abc import Callable

Say = Callable[[str], None]


def aloud(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def silently(text: str) -> None:
    """What processes say that repeat the first one's work."""
