"""A verb's process asks for huge pages from its beginning, and stays what the user started."""

import os
import subprocess
import sys

import pytest

from jaxft import huge_pages

TUNABLE = "glibc.malloc.hugetlb=1"
CONFIG = """
import os, sys
print("TOLD", os.getpid(), os.environ.get("GLIBC_TUNABLES"), sys.argv[1:], sys.dont_write_bytecode)
raise SystemExit(3)
"""


class Begun(BaseException):
    """In place of the process that would begin."""


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Starts as if the kernel's switch stood at `state` with `tunables` in the environment; gives
    the tunables of the process that begins then, or None.
    """

    def begin(executable: str, words: list[str]) -> None:
        assert (executable, words) == (sys.executable, [sys.executable, *sys.orig_argv[1:]])
        raise Begun

    def starting(state: str, tunables: str | None = None) -> str | None:
        (tmp_path / "enabled").write_text(state)
        monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
        if tunables is not None:
            monkeypatch.setenv("GLIBC_TUNABLES", tunables)
        try:
            huge_pages.start_with_huge_pages()
        except Begun:
            return os.environ["GLIBC_TUNABLES"]
        return None

    monkeypatch.setattr(huge_pages, "SWITCH", tmp_path / "enabled")
    monkeypatch.setattr(os, "execv", begin)
    return starting


def test_asked_for_where_the_kernel_gives_them_to_those_who_ask(start):
    assert start("always [madvise] never") == TUNABLE
    assert start("[always] madvise never") is None
    assert start("always madvise [never]") is None


def test_what_the_environment_says_stays(start):
    assert start("always [madvise] never", "glibc.malloc.arena_max=2") == (
        f"glibc.malloc.arena_max=2:{TUNABLE}"
    )
    assert start("always [madvise] never", "glibc.malloc.hugetlb=0") is None


def test_a_host_without_the_switch(start, monkeypatch, tmp_path):
    monkeypatch.setattr(huge_pages, "SWITCH", tmp_path / "nowhere")
    assert start("always [madvise] never") is None


def test_the_same_process_runs_the_same_words(tmp_path):
    (tmp_path / "told.py").write_text(CONFIG)
    words = [sys.executable, "-B", "-m", "jaxft.train", f"--config={tmp_path / 'told.py'}"]
    given = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    process = subprocess.Popen(words, env=given, stdout=subprocess.PIPE, text=True)
    told = next(line for line in process.communicate(timeout=120)[0].splitlines() if "TOLD" in line)
    asked = huge_pages.SWITCH.exists() and "[madvise]" in huge_pages.SWITCH.read_text()
    assert process.returncode == 3
    assert told == f"TOLD {process.pid} {TUNABLE if asked else None} {words[-1:]} True"
