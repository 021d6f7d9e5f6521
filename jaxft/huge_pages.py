"""Huge pages for what malloc hands out, on hosts whose kernel gives them to those who ask.

On CPU every update maps its temporaries anew, hundreds of megabytes: in pages of 4 KB that is a
tenth to a sixth of an update (docs/benchmarks.md). JAX advises them for TPU hosts too.
"""

import os
import sys
from pathlib import Path

SWITCH = Path("/sys/kernel/mm/transparent_hugepage/enabled")
VARIABLE, TUNABLE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"


def start_with_huge_pages() -> None:
    """Starts this process anew, under its own id and with its own words, with a malloc that asks:
    glibc (2.35 and later; others ignore it) reads its tunables only when a process begins. One
    that the environment has already keeps its value.
    """
    tunables = os.environ.get(VARIABLE, "")
    if TUNABLE not in tunables and SWITCH.exists() and "[madvise]" in SWITCH.read_text():
        os.environ[VARIABLE] = ":".join([*filter(None, [tunables]), f"{TUNABLE}=1"])
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
