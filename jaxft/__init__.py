"""Full fine-tuning of Hugging Face checkpoints in JAX and Flax."""

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxft.models import load_pretrained, save_pretrained

__all__ = ["load_pretrained", "save_pretrained"]
__version__ = "0.1.0"

if sys.argv[0] == "-m" and "jaxft." in " ".join(sys.orig_argv):  # looking for the verb
    from jaxft.huge_pages import start_with_huge_pages

    start_with_huge_pages()


def __getattr__(name: str) -> Any:
    # jax and flax take seconds to import, which `--help` and a misspelt flag need not wait for.
    if name in __all__:
        from jaxft import models

        return getattr(models, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
