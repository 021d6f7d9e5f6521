"""Compiled programs kept on disk, so that the next start of the same run need not compile."""

import os
from pathlib import Path

import jax

from jaxft.errors import UserError
from jaxft.processes import process_count


def keep_compiled(folder: str | None = None) -> str:
    """Sets JAX's persistent compilation cache and says where: `folder` ("none": nowhere), else
    JAX_COMPILATION_CACHE_DIR, else jaxft/xla in the user's cache.

    Several processes need a folder that all of them see, and only a named one is: process 0 alone
    writes, and on GPU a process that compiles waits for the autotuning of one that need not.

    Raises:
        UserError: the folder cannot be written.
    """
    named = folder or jax.config.values["jax_compilation_cache_dir"]
    if named == "none" or (named is None and process_count() > 1):
        jax.config.update("jax_compilation_cache_dir", None)
        reason = "" if named else "; name a folder that all hosts share"
        return f"Compilation cache: none (JAX_COMPILATION_CACHE_DIR=FOLDER{reason})"
    if named is None:
        named = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "jaxft", "xla")
    if "://" not in named:
        named = str(Path(named).expanduser().absolute())
        try:
            Path(named).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"The compilation cache {named} cannot be written ({error}): give "
                "JAX_COMPILATION_CACHE_DIR, or train's --compilation_cache_dir, a folder or none."
            ) from None
    jax.config.update("jax_compilation_cache_dir", named)
    return f"Compilation cache: {named}"
